"""A small service behind the pages: the JSON API's answers over synthetic studies, kept in memory, so that pages can be driven."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
from fastapi import FastAPI, Request, Response
from PIL import Image
from starlette.responses import JSONResponse, StreamingResponse

from sagittal.anatomy import Nodule, Patient, Scan, draw_chest
from sagittal.serve.web_pages import add_pages

NASTY = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
ROLES = {
    "administrator": [
        "account",
        "see",
        "send",
        "review",
        "steer",
        "export",
        "operate",
        "metrics",
        "delete",
        "users",
        "audit",
    ],
    "engineer": ["account", "see", "send", "steer", "export", "operate", "metrics"],
    "reader": ["account", "see", "review", "steer"],
}
NODULES = (Nodule((-64.0, 10.0, 12.0), 16.0), Nodule((58.0, -30.0, -20.0), 11.0))


def now(minutes: float = 0.0) -> str:
    """A time some minutes ago."""
    return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def packed(values: np.ndarray, affine: np.ndarray, *, placed: bool = True) -> bytes:
    """Values as .nii.gz."""
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, int(placed))
    image.set_qform(affine, int(placed), strip_shears=True)
    return gzip.compress(image.to_bytes(), 1)


class Phantoms:
    """Synthetic images with what a model might find in them, made once."""

    def __init__(self, scan: Scan | None = None) -> None:
        scan = scan or Scan(pixels=96, slice_mm=6.0, dose_mgy=8.0)
        drawn = draw_chest(Patient(anatomy=41, age=62), scan, NODULES)
        self.shape = drawn.hu.shape[::-1]
        edge, _, step = scan.spacing
        first = np.array([-(scan.pixels - 1) / 2 * edge, -(scan.pixels - 1) / 2 * edge, -(scan.slices - 1) / 2 * step])
        lps = np.diag([edge, edge, step, 1.0])
        lps[:3, 3] = first
        self.affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
        self.ct = drawn.hu.transpose(2, 1, 0).astype(np.int16)
        lung = drawn.occupancy["lung"].transpose(2, 1, 0) > 0.5
        nodule = drawn.occupancy["nodule"].transpose(2, 1, 0) > 0.3
        left = np.zeros_like(lung)
        left[self.shape[0] // 2 :] = True  # the patient's left: x of LPS grows there, and so does the first axis
        mask = np.zeros(self.shape, np.uint8)
        mask[lung & ~left], mask[lung & left], mask[nodule] = 1, 2, 3
        self.mask = mask
        heat = np.zeros(self.shape, np.float32)
        grid = np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij")
        self.boxes = []
        for one, score in zip(NODULES, (0.93, 0.61), strict=True):
            middle = (np.array(one.centre) - first) / (edge, edge, step)
            far = sum(((axis - c) * mm) ** 2 for axis, c, mm in zip(grid, middle, (edge, edge, step), strict=True))
            heat = np.maximum(heat, score * np.exp(-far / (2 * one.diameter_mm**2)))
            half = one.diameter_mm / 2 / np.array([edge, edge, step])
            low, high = np.round(middle - half - 0.5) + 0.5, np.round(middle + half - 0.5) + 0.5
            self.boxes.append(
                {"label": "nodule", "score": score, "chosen": True, "corners_voxels": [low.tolist(), high.tolist()]}
            )
        self.heat = np.round(255 * heat).astype(np.uint8)
        # A radiograph without a place in a patient: brighter to the left, so that a mirrored picture would be seen.
        picture = np.clip((drawn.hu.mean(axis=1)[::-1] + 700) / 5, 0, 255)
        picture = np.asarray(Image.fromarray(picture.astype(np.uint8)).resize((224, 200)))
        self.radiograph = picture.T[:, :, None].astype(np.int16)
        # Sagittal MR, tilted: the voxels' own axes are none of the patient's.
        turn = np.array([[0.0, 0.17, -0.98, 0], [0.99, 0.05, 0.1, 0], [0.1, -0.98, -0.17, 0], [0, 0, 0, 1]])
        self.mr_affine = turn @ np.diag([1.6, 1.6, 4.0, 1.0])
        self.mr_affine[:3, 3] = [60, -90, 80]
        self.mr = np.clip(self.ct[::1, ::1, ::1].transpose(1, 2, 0)[:, :, ::4] / 4 + 260, 0, 900).astype(np.float32)


def studies(phantoms: Phantoms, count: int = 60) -> list[dict[str, Any]]:
    """Rows of a worklist; those with a page of their own come first."""
    rng = np.random.default_rng(7)
    names = [
        "Synthetic^Ada",
        "Phantom^Berta",
        "Wang^XiaoDong=王^小东",
        "Muster^Max",
        NASTY,
        "Синтетик^Анна",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ]
    about = [
        ("CT", "Chest CT, low dose"),
        ("CT", "Chest CT, low dose"),
        ("MR", "Knee MR, sagittal"),
        ("DX", "Chest, p.a."),
        ("CT", NASTY),
        ("US", "Breast ultrasound"),
        ("CT", "Head CT"),
    ]
    states = [
        "answered",
        "answered",
        "answered",
        "abstained",
        "answered",
        "waiting",
        "running",
        "receiving",
        "failed",
        "no-model",
        "refused",
    ]
    rows = []
    for n in range(count):
        status = states[n % len(states)] if n >= 5 else states[n]
        modality, description = about[n % len(about)]
        done = status in ("answered", "abstained")
        rows.append(
            {
                "id": n + 1,
                "patient_name": names[n % len(names)],
                "patient_id": f"SYN-{1000 + n}",
                "birth_date": f"19{40 + n % 55:02d}0{1 + n % 9}12",
                "sex": "FMO"[n % 3 if n % 11 == 0 else n % 2],
                "accession": f"A{20261121000 + n}",
                "study_date": "20261121" if n < 40 else "20261120",
                "study_time": "101500",
                "description": description,
                "modalities": [modality],
                "status": status,
                "urgency": 2 if n in (0, 7) else 1 if n % 9 == 1 else 0,
                "waiting_s": float(30 + 47 * n),
                "finding": {
                    "answered": ["Lung nodule, 16 mm, right", "Lungs and 2 nodules", "No meniscal tear"][n % 3],
                    "abstained": "No answer: unlike the training images",
                    "no-model": "no model is for US",
                    "refused": "pixel data missing",
                    "failed": "the model's process was stopped: out of memory",
                }.get(status, ""),
                "confidence": round(float(rng.uniform(0.55, 0.995)), 3) if status == "answered" else None,
                "abstained": status == "abstained",
                "verdict": ["", "", "", "accept", "", "correct", "", "reject"][n % 8] if done and n > 4 else "",
                "arrived_at": now(n + 1),
                "answered_at": now(n) if done else None,
            }
        )
    return rows


INTENDED = {
    "question": "nodules: nodule, mass (boxes)",
    "modality": "CT",
    "body_part": "CHEST",
    "unit": "HU",
    "dimensions": 3,
    "channels": 1,
    "size": [[96.0, 512.0], [96.0, 512.0], [24.0, 300.0]],
    "spacing_mm": [[0.5, 4.0], [0.5, 4.0], [0.5, 6.0]],
    "population": "Adults, 40 to 84 years (synthetic)",
    "indication": "not stated",
    "user": "Radiologists",
    "exclusions": "Children; nodules under 4 mm; contrast medium",
    "task": "detect",
    "classes": ["nodule", "mass"],
}


def result(number: int, kind: str, phantoms: Phantoms, **more: Any) -> dict[str, Any]:
    """A result as the study page gets it."""
    base = {
        "id": number,
        "model": {"classes": "chest-finding", "boxes": "lung-nodules", "mask": "lungs"}[kind],
        "version": "1.2.0",
        "checksum": "0" * 64,
        "role": "answers",
        "state": "answered",
        "summary": {
            "classes": "pneumonia",
            "boxes": "2 nodules: 16 mm and 11 mm",
            "mask": "Lungs and nodules outlined",
        }[kind],
        "confidence": 0.93,
        "finding": {"kind": kind, "decision": []},
        "reason": "",
        "seconds": 1.4,
        "created_at": now(3),
        "replaced_by": None,
        "series": [1],
        "objects": [
            {"id": 10 * number + n, "kind": one, "media_type": "application/dicom", "size": 31234}
            for n, one in enumerate(("seg", "sr", "sc", "ko", "json"))
        ],
        "reviews": [],
        "intended_use": INTENDED,
        "masks": [],
        "boxes": [],
        "maps": [],
    }
    if kind == "classes":
        probabilities = {"no finding": 0.04, "pneumonia": 0.93, "effusion": 0.02, "mass": 0.01}
        base["finding"] |= {
            "decision": ["pneumonia"],
            "classes": [{"name": k, "probability": v, "held": v > 0.5} for k, v in probabilities.items()],
        }
        base["maps"] = [{"name": "map", "url": f"/api/results/{number}/map.nii.gz", "media_type": "application/gzip"}]
    if kind == "boxes":
        base["boxes"] = phantoms.boxes
        base["finding"] |= {"boxes": phantoms.boxes, "shape": list(phantoms.shape)}
    if kind == "mask":
        names = [("lung right", "#56b4e9", 2310.4), ("lung left", "#00be8c", 2010.9), ("nodule", "#e69f00", 2.61)]
        base["finding"] |= {
            "structures": [
                {"name": n, "index": k + 1, "colour": c, "measurements": {"volume_ml": v}}
                for k, (n, c, v) in enumerate(names)
            ]
        }
        base["masks"] = [
            {"name": n, "index": k + 1, "colour": c, "url": f"/api/results/{number}/mask.nii.gz"}
            for k, (n, c, _) in enumerate(names)
        ]
    return base | more


class Fake:
    """What the fake service holds and was told."""

    def __init__(self, data: Path, phantoms: Phantoms) -> None:
        self.data, self.phantoms = data, phantoms
        self.listeners: list[asyncio.Queue[str]] = []
        self.files: dict[str, bytes] = {}
        self.address = ""
        self.reset()

    def reset(self) -> None:
        """Forget everything that was said to it."""
        self.role, self.language, self.signed_in = "administrator", "", True
        self.rows = studies(self.phantoms)
        self.reviews: list[tuple[int, dict[str, Any]]] = []
        self.asked: list[str] = []
        self.viewed: list[str] = []
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.extra: dict[int, list[dict[str, Any]]] = {}
        self.models_on = {"lung-nodules": True, "lungs": True}
        self.paused = False

    def tell(self, change: dict[str, Any]) -> None:
        """Send a change to the open pages."""
        for queue in self.listeners:
            queue.put_nowait(f"data: {json.dumps(change)}\n\n")

    def study(self, study_id: int) -> dict[str, Any] | None:
        """A study's page."""
        row = next((one for one in self.rows if one["id"] == study_id), None)
        if row is None:
            return None
        p = self.phantoms
        series = [
            {
                "id": 1,
                "modality": "CT",
                "description": "Chest 5.0 soft",
                "number": 2,
                "instances": p.shape[2],
                "problem": "",
                "volume": True,
            },
            {
                "id": 4,
                "modality": "CT",
                "description": "Scout",
                "number": 1,
                "instances": 1,
                "problem": "",
                "volume": False,
            },
        ]
        results = {1: ["boxes"], 2: ["mask"], 4: [], 5: ["classes"]}.get(
            study_id, ["boxes"] if row["status"] == "answered" else []
        )
        made = [result(study_id * 10 + n, kind, p) for n, kind in enumerate(results)]
        if study_id == 3:
            series = [
                {
                    "id": 2,
                    "modality": "MR",
                    "description": "PD sag",
                    "number": 3,
                    "instances": p.mr.shape[2],
                    "problem": "",
                    "volume": True,
                }
            ]
            made = [
                result(
                    30,
                    "classes",
                    p,
                    series=[2],
                    summary="No meniscal tear",
                    finding={
                        "kind": "classes",
                        "decision": ["no tear"],
                        "classes": [
                            {"name": "no tear", "probability": 0.71, "held": True},
                            {"name": "tear", "probability": 0.29, "held": False},
                        ],
                    },
                    maps=[],
                    confidence=0.71,
                )
            ]
        if study_id == 4:
            series = [
                {
                    "id": 3,
                    "modality": "DX",
                    "description": "p.a.",
                    "number": 1,
                    "instances": 1,
                    "problem": "",
                    "volume": True,
                }
            ]
            made = [
                result(
                    40,
                    "classes",
                    p,
                    series=[3],
                    state="abstained",
                    summary="No answer",
                    reason="unlike the images that the model was trained on (more unlike than 99.7 % of them)",
                    confidence=None,
                    maps=[{"name": "map", "url": "/api/objects/499", "media_type": "image/png"}],
                    objects=[],
                )
            ]
        if study_id == 2:
            made.append(result(29, "boxes", p, role="watches", version="0.9.0"))
        for one in made:
            one["reviews"] = self.extra.get(one["id"], [])
            if study_id == 5:
                one["summary"] = NASTY
                one["model"] = NASTY
        return row | {
            "study_uid": "1.2.826.0.1.3680043.8.498.1",
            "series": series,
            "choices": [
                {
                    "series_id": series[0]["id"],
                    "model": "lung-nodules 1.2.0",
                    "used": True,
                    "reason": "CT of the chest, 5 mm, the thinnest of 2",
                    "at": now(4),
                },
                *(
                    {
                        "series_id": one["id"],
                        "model": "lung-nodules 1.2.0",
                        "used": False,
                        "reason": "1 image, at least 20 are needed",
                        "at": now(4),
                    }
                    for one in series[1:]
                ),
            ],
            "results": made,
            "earlier": [
                {
                    "id": 40,
                    "study_date": "20250314",
                    "description": "Chest CT",
                    "finding": "1 nodule: 12 mm",
                    "modalities": ["CT"],
                    "status": "answered",
                    "verdict": "accept",
                }
            ],
            "jobs": [
                {"id": 5, "kind": "deliver", "state": "waiting", "attempts": 2, "error": "the PACS does not answer"},
                {"id": 4, "kind": "answer", "state": "done", "attempts": 1, "error": ""},
            ],
        }


def make_fake(data: Path, phantoms: Phantoms) -> tuple[FastAPI, Fake]:
    """The application and its state."""
    app = FastAPI()
    fake = Fake(data, phantoms)
    app.state.fake = fake
    app.state.service = SimpleNamespace(
        config=SimpleNamespace(server=SimpleNamespace(language="en", data=data), page=SimpleNamespace(viewer="ohif")),
        oidc=object(),
        db=None,
    )
    add_pages(app)
    p = phantoms
    fake.files = {
        "/api/series/1/volume.nii.gz": packed(p.ct, p.affine),
        "/api/series/2/volume.nii.gz": packed(p.mr, p.mr_affine),
        "/api/series/3/volume.nii.gz": packed(p.radiograph, np.diag([-1.0, -1.0, 1.0, 1.0]), placed=False),
        "mask": packed(p.mask, p.affine),
        "map": packed(p.heat, p.affine),
        "/api/objects/499": _png(np.asarray(p.radiograph[:, :, 0].T, np.uint8)),
    }

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        path = request.url.path
        if path.startswith("/viewer/"):
            fake.viewed.append(f"{request.method} {path}")
        if path.startswith("/api/"):
            fake.asked.append(f"{request.method} {path}{'?' + request.url.query if request.url.query else ''}")
            outside = path in ("/api/login",) or path.startswith("/api/links/")
            if not fake.signed_in and not outside:
                return JSONResponse({"error": "log in, or send a token", "code": 401, "id": "x"}, 401)
            if (
                request.method != "GET"
                and not outside
                and request.headers.get("x-csrf-token") != "token-of-this-session"
            ):
                return JSONResponse({"error": "the header X-CSRF-Token is missing", "code": 403, "id": "x"}, 403)
        answer: Response = await call_next(request)
        return answer

    @app.get("/api/me")
    def me() -> dict[str, Any]:
        return {
            "name": "dr.synthetic",
            "role": fake.role,
            "permissions": ROLES[fake.role],
            "language": fake.language,
            "csrf": "token-of-this-session",
        }

    @app.post("/api/login")
    async def login(request: Request) -> Response:
        body = await request.json()
        if body["password"] != "a right sentence":
            return JSONResponse({"error": "name or password are not right", "code": 401, "id": "x"}, 401)
        fake.signed_in = True
        return JSONResponse(me())

    @app.post("/api/logout")
    def logout() -> dict[str, str]:
        fake.signed_in = False
        return {"status": "done"}

    @app.get("/api/links/{secret}")
    def about(secret: str) -> Response:
        if secret == "a-secret-that-works-once":
            return JSONResponse({"purpose": "first-administrator", "name": ""})
        if secret == "a-secret-of-anna-that-works":
            return JSONResponse({"purpose": "set-password", "name": "anna"})
        return JSONResponse({"error": "this link was used", "code": 404, "id": "x"}, 404)

    @app.post("/api/links/{secret}")
    async def link(secret: str, request: Request) -> Response:
        if not secret.startswith("a-secret-"):
            return JSONResponse({"error": "used", "code": 404, "id": "x"}, 404)
        fake.posted.append(("link", await request.json()))
        fake.signed_in = True
        return JSONResponse(me())

    @app.get("/api/studies")
    def listed(request: Request) -> dict[str, Any]:
        q = request.query_params
        found = [one for one in fake.rows if _matches(one, q)]
        order = {
            "newest": lambda r: r["waiting_s"],
            "oldest": lambda r: -r["waiting_s"],
            "confidence": lambda r: r["confidence"] or 2,
        }.get(q.get("sort", ""), lambda r: (-r["urgency"], -r["waiting_s"]))
        found = sorted(found, key=order)
        start, limit = int(q.get("after") or 0), int(q.get("limit") or 50)
        counts: dict[str, int] = {}
        for one in fake.rows:
            if _matches(one, {k: v for k, v in q.items() if k != "status"}):
                counts[one["status"]] = counts.get(one["status"], 0) + 1
        return {
            "studies": found[start : start + limit],
            "next": str(start + limit) if start + limit < len(found) else None,
            "counts": counts,
        }

    @app.get("/api/studies/{study_id}")
    def study(study_id: int) -> Response:
        found = fake.study(study_id)
        return (
            JSONResponse(found)
            if found
            else JSONResponse({"error": "there is no such study", "code": 404, "id": "x"}, 404)
        )

    @app.post("/api/results/{result_id}/reviews", status_code=201)
    async def review(result_id: int, request: Request) -> dict[str, Any]:
        body = await request.json()
        fake.reviews.append((result_id, body))
        correction = body.get("correction")
        fake.extra.setdefault(result_id, []).append(
            {
                "id": len(fake.reviews),
                "user": "dr.synthetic",
                "at": now(),
                "verdict": body["verdict"],
                "reason": body.get("reason", ""),
                "correction": {"mask": {"url": f"/api/reviews/{len(fake.reviews)}/mask.nii.gz"}}
                if correction and "mask" in correction
                else correction,
            }
        )
        next(one for one in fake.rows if one["id"] == result_id // 10)["verdict"] = body["verdict"]
        return {"id": len(fake.reviews)}

    @app.get("/api/reviews/{number}/mask.nii.gz")
    def corrected(number: int) -> Response:
        return Response(
            base64.b64decode(fake.reviews[number - 1][1]["correction"]["mask"]), media_type="application/gzip"
        )

    @app.post("/api/{path:path}")
    async def taken(path: str, request: Request) -> dict[str, Any]:
        body = await request.json() if await request.body() else {}
        fake.posted.append((path, body))
        if path.endswith("/switch"):
            fake.models_on[path.split("/")[1]] = body["on"]
        if path == "queue":
            fake.paused = body["paused"]
        if path == "users":
            return {
                "id": 9,
                "name": body["name"],
                "role": body["role"],
                "active": True,
                "link": "a-secret-that-works-once",
            }
        if path == "tokens":
            return {"id": 9, "name": body["name"], "token": "sg_synthetic-token"}
        if path == "fetch" or path.endswith("/earlier"):
            return {"job": 12}
        if path.endswith("/test"):
            return {"ok": True, "seconds": 0.02, "message": "C-ECHO answered"}
        return {"status": "done"}

    @app.patch("/api/me")
    async def change_me(request: Request) -> dict[str, str]:
        fake.language = (await request.json()).get("language", "")
        return {"status": "done"}

    @app.get("/api/changes")
    async def changes(request: Request) -> Response:
        queue: asyncio.Queue[str] = asyncio.Queue()
        fake.listeners.append(queue)

        async def lines() -> Any:
            yield "retry: 500\n\n"
            end = time.monotonic() + 60
            while time.monotonic() < end:
                try:
                    yield await asyncio.wait_for(queue.get(), 0.25)
                except TimeoutError:
                    if await request.is_disconnected():
                        break
            fake.listeners.remove(queue)

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.get("/api/{path:path}")
    def rest(path: str) -> Response:
        address = f"/api/{path}"
        for kind in ("mask", "map"):
            if path.startswith("results/") and path.endswith(f"{kind}.nii.gz"):
                return Response(fake.files[kind], media_type="application/gzip")
        if address in fake.files:
            png = fake.files[address][:4] == b"\x89PNG"
            return Response(fake.files[address], media_type="image/png" if png else "application/gzip")
        if path.startswith("objects/"):
            return Response(b"DICM", media_type="application/dicom")
        found = _admin(fake).get(path)
        return (
            JSONResponse(found)
            if found is not None
            else JSONResponse({"error": "not found", "code": 404, "id": "x"}, 404)
        )

    return app, fake


def _png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def _matches(row: dict[str, Any], q: Any) -> bool:
    text = (q.get("text") or "").lower()
    words = f"{row['patient_name']} {row['patient_id']} {row['accession']} {row['description']}".lower()
    verdict = q.get("verdict") or ""
    return (
        (not q.get("status") or row["status"] == q["status"])
        and (not q.get("urgency") or row["urgency"] == int(q["urgency"]))
        and (not q.get("modality") or q["modality"] in row["modalities"])
        and (not verdict or row["verdict"] == ("" if verdict == "none" else verdict))
        and text in words
    )


def _admin(fake: Fake) -> dict[str, Any]:
    job = {
        "priority": 0,
        "attempts": 2,
        "most_attempts": 5,
        "progress": 0.0,
        "error": "",
        "created_at": now(9),
        "due_at": now(-2),
        "finished_at": None,
    }
    jobs = [
        job | {"id": 91, "kind": "answer", "state": "leased", "study_id": 7, "attempts": 1},
        job
        | {
            "id": 92,
            "kind": "deliver",
            "state": "waiting",
            "study_id": 1,
            "error": "the PACS does not answer (connection refused)",
        },
        job
        | {
            "id": 88,
            "kind": "answer",
            "state": "dead",
            "study_id": 9,
            "attempts": 5,
            "error": "the model's process was stopped: it took more than 4.0 GiB",
        },
    ]
    model = {
        "version": "1.2.0",
        "role": "answers",
        "task": "detect",
        "state": "ready",
        "busy": 0,
        "bytes": 612_000_000,
        "most_bytes": 4_294_967_296,
        "used": 0.0,
        "error": "",
        "intended_use": {k: v for k, v in INTENDED.items() if k not in ("task", "classes")},
        "classes": ["nodule", "mass"],
    }
    share = {"accept": 31, "correct": 6, "reject": 3, "n": 40, "agreement": 0.775, "low": 0.625, "high": 0.877}
    periods = [
        {
            "model": "lung-nodules",
            "begin": (datetime(2026, 9, 7) + timedelta(weeks=n)).date().isoformat(),
            "accept": 5 + n % 4,
            "correct": 1 + n % 2,
            "reject": n % 3 // 2,
            "n": 6 + n % 4 + n % 2 + n % 3 // 2,
            "agreement": (5 + n % 4) / (6 + n % 4 + n % 2 + n % 3 // 2),
            "low": 0.4,
            "high": 0.95,
        }
        for n in range(10)
    ]
    return {
        "pacs": {"pacs": ["hospital-pacs", "old-archive"]},
        "models": {
            "models": [
                model | {"name": "lung-nodules", "on": fake.models_on["lung-nodules"]},
                model
                | {"name": "lungs", "task": "segment", "on": fake.models_on["lungs"], "state": "cold", "bytes": 0},
                model | {"name": "lung-nodules", "version": "0.9.0", "role": "watches", "on": True},
            ]
        },
        "rules": {
            "rules": [
                {
                    "model": "lung-nodules",
                    "version": "1.2.0",
                    "role": "answers",
                    "urgency": 1,
                    "inputs": ["image"],
                    "series": [
                        {
                            "modality": ["CT"],
                            "body_part": ["CHEST"],
                            "description": "lung|chest",
                            "exclude": "scout",
                            "thickness_mm": [0, 6],
                            "contrast": None,
                            "manufacturer": "",
                            "images_least": 20,
                            "images_most": 0,
                            "captures": False,
                            "prefer": "thinnest",
                            "image": "",
                        }
                    ],
                    "results": ["seg", "sr", "sc", "json"],
                    "to": ["pacs"],
                    "intended_use": {},
                }
            ],
            "completeness": {"silence_s": 30.0, "commitment": True},
        },
        "destinations": {
            "destinations": [
                {
                    "name": "pacs",
                    "kind": "dicom",
                    "host": "pacs.hospital.example",
                    "port": 104,
                    "ae_title": "PACS",
                    "deliveries": {"confirmed": 212, "sent": 3, "failed": 1},
                    "last_sent_at": now(5),
                    "trouble": {"code": "away", "message": "does not answer (connection refused); 4 deliveries wait"},
                },
                {
                    "name": "folder",
                    "kind": "folder",
                    "folder": "/srv/results",
                    "deliveries": {"sent": 216},
                    "last_sent_at": now(5),
                    "trouble": None,
                },
            ]
        },
        "jobs": {
            "jobs": jobs,
            "next": None,
            "counts": {"answer": {"leased": 1, "dead": 1, "done": 230}, "deliver": {"waiting": 1}},
            "paused": fake.paused,
        },
        "events": {
            "events": [
                {
                    "id": 1,
                    "code": "destination-away",
                    "about": "pacs",
                    "level": "error",
                    "message": "The PACS does not answer (connection refused). Results wait and are sent when it is back.",
                    "first_at": now(42),
                    "last_at": now(1),
                    "count": 17,
                    "over_at": None,
                },
                {
                    "id": 2,
                    "code": "disk-low",
                    "about": "archive",
                    "level": "warning",
                    "message": "9.1 GiB are free; below 5.0 GiB no more studies are taken.",
                    "first_at": now(300),
                    "last_at": now(20),
                    "count": 3,
                    "over_at": None,
                },
                {
                    "id": 3,
                    "code": "started",
                    "about": "",
                    "level": "info",
                    "message": "The service was started again; 2 jobs were taken up.",
                    "first_at": now(900),
                    "last_at": now(900),
                    "count": 1,
                    "over_at": now(899),
                },
            ]
        },
        "storage": {
            "used": 412_000_000_000,
            "free": 9_800_000_000,
            "total": 500_000_000_000,
            "reserve": 5_368_709_120,
            "studies": 3120,
            "instances": 812_345,
            "oldest_check": now(40000),
            "last_check": now(65),
            "damaged": 1,
            "damage": {"altered": 1},
        },
        "conflicts": {
            "conflicts": [
                {
                    "id": 4,
                    "study_id": 2,
                    "series_id": 1,
                    "instance_id": 77,
                    "size": 526_338,
                    "source": "dicom CT2",
                    "arrived_at": now(30),
                    "first_source": "dicom CT1",
                    "first_at": now(80),
                    "settled_at": None,
                    "settled_by": "",
                    "decision": "",
                }
            ]
        },
        "refusals": {
            "refusals": [
                {
                    "id": 3,
                    "at": now(12),
                    "source": "dicom CT1",
                    "code": "no-pixel-data",
                    "reason": "CT Image Storage without PixelData; expected 524,288 bytes",
                    "count": 2,
                },
                {
                    "id": 2,
                    "at": now(600),
                    "source": "rest",
                    "code": "zip-bomb",
                    "reason": "1,048,576 bytes unpack to more than 1 GiB",
                    "count": 1,
                },
            ],
            "next": None,
        },
        "users": {
            "users": [
                {
                    "id": 1,
                    "name": "dr.synthetic",
                    "role": "administrator",
                    "language": "en",
                    "active": True,
                    "has_password": True,
                    "by_provider": False,
                    "created_at": now(90000),
                },
                {
                    "id": 2,
                    "name": NASTY,
                    "role": "reader",
                    "language": "",
                    "active": True,
                    "has_password": False,
                    "by_provider": True,
                    "created_at": now(80000),
                },
                {
                    "id": 3,
                    "name": "pacs-bridge",
                    "role": "machine",
                    "language": "",
                    "active": False,
                    "has_password": False,
                    "by_provider": False,
                    "created_at": now(70000),
                },
            ]
        },
        "tokens": {
            "tokens": [
                {
                    "id": 1,
                    "user_id": 3,
                    "user": "pacs-bridge",
                    "name": "nightly upload",
                    "created_at": now(70000),
                    "expires_at": now(-400000),
                    "used_at": now(300),
                    "revoked_at": None,
                },
                {
                    "id": 2,
                    "user_id": 1,
                    "user": "dr.synthetic",
                    "name": "notebook",
                    "created_at": now(60000),
                    "expires_at": None,
                    "used_at": None,
                    "revoked_at": now(1000),
                },
            ]
        },
        "audit": {
            "records": [
                {
                    "number": 40 - n,
                    "at": now(3 * n),
                    "actor": "dr.synthetic" if n % 3 else "CT1",
                    "role": "administrator" if n % 3 else "machine",
                    "address": "127.0.0.1",
                    "action": ("view", "login", "review", "settings")[n % 4],
                    "study_id": 1 + n if n % 4 in (0, 2) else None,
                    "outcome": "refused" if n == 5 else "done",
                    "details": {"result": 10, "verdict": "accept"} if n % 4 == 2 else {},
                    "hash": "ab" * 32,
                }
                for n in range(14)
            ],
            "next": None,
        },
        "audit/verify": {"sound": True, "records": 1234, "head": "ab" * 32, "problem": ""},
        "agreement": {
            "by": "week",
            "all": share,
            "models": [
                {"model": "lung-nodules", "version": "1.2.0", "role": "answers", **share},
                {"model": "lung-nodules", "version": "0.9.0", "role": "watches", **share},
            ],
            "periods": periods,
        },
    }
