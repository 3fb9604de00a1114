"""DICOMweb (PS3.18): searching, retrieving and storing under ``/dicom-web``, each in a module of its own."""

from __future__ import annotations

from fastapi import APIRouter

from sagittal.serve import qido, stow, wado, wado_frames

router = APIRouter()
for _part in (qido, wado, wado_frames, stow):
    router.include_router(_part.router)
