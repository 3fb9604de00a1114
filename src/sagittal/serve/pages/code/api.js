// Talk with the service: JSON both ways, the token against forged requests, errors as the service words them.

/** An answer that is not a success. */
export class ApiError extends Error {
  /**
   * @param {number} status 0 where there was no answer at all
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let csrf = "";

/**
 * Ask the service.
 * @param {string} method
 * @param {string} path
 * @param {any} [body] becomes JSON
 * @returns {Promise<any>} the answer's JSON, null where it has none
 */
export async function ask(method, path, body) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET" && csrf) headers["X-CSRF-Token"] = csrf;
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      redirect: "error",
      cache: "no-store",
    });
  } catch {
    throw new ApiError(0, "no answer");
  }
  const kind = answer.headers.get("Content-Type") ?? "";
  const content = kind.includes("json") ? await answer.json().catch(() => null) : null;
  if (!answer.ok) throw new ApiError(answer.status, problem(content) || answer.statusText);
  return content;
}

function problem(content) {
  const detail = content?.detail ?? content?.message ?? content?.error ?? "";
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) return detail.map((one) => one.msg ?? "").join("; ");
  return detail?.message ?? detail?.reason ?? "";
}

export const get = (path) => ask("GET", path);
export const post = (path, body = {}) => ask("POST", path, body);
export const patch = (path, body = {}) => ask("PATCH", path, body);
export const remove = (path) => ask("DELETE", path);

/**
 * @typedef {{name: string, role: string, permissions: string[], language: string, csrf: string}} Me
 */

/**
 * Who is signed in.
 * @returns {Promise<Me|null>} null where nobody is
 */
export async function whoAmI() {
  try {
    const me = await get("/api/me");
    csrf = me.csrf ?? "";
    return me;
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return null;
    throw error;
  }
}

/**
 * A query of those values that are set.
 * @param {Record<string, any>} values
 * @returns {string} with its question mark, or empty
 */
export function query(values) {
  const set = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return set.length ? `?${new URLSearchParams(set.map(([key, value]) => [key, String(value)]))}` : "";
}

/**
 * Bytes of a file that the service holds.
 * @param {string} path of this origin
 * @param {(bytes: number, of: number) => void} [came] told how much has come; `of` is 0 where that is not known
 * @returns {Promise<ArrayBuffer>}
 */
export async function bytes(path, came) {
  const address = new URL(path, location.href);
  if (address.origin !== location.origin) throw new ApiError(0, "another origin");
  const answer = await fetch(address, { credentials: "same-origin", redirect: "error" }).catch(() => null);
  if (!answer) throw new ApiError(0, "no answer");
  if (!answer.ok) throw new ApiError(answer.status, problem(await answer.json().catch(() => null)) || answer.statusText);
  if (!came || !answer.body) return answer.arrayBuffer();
  const pieces = [];
  let seen = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    seen += value.length;
    came(seen, Number(answer.headers.get("Content-Length")) || 0);
  }
  return new Blob(pieces).arrayBuffer();
}
