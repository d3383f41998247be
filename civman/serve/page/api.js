// Requests to civman's API (docs/serve.md). Errors carry what the command line prints: code, message and hint.

export class ApiError extends Error {
  constructor(status, value) {
    super(value.message || `the server answered ${status}`);
    this.status = status;
    this.code = value.code || "";
    this.hint = value.hint || "";
  }
}

/** Send a request; `query` values may be lists, and empty ones are left out. Returns the JSON answer. */
export async function api(method, path, { query = {}, body = undefined, bytes = undefined, signal = undefined } = {}) {
  const headers = { "X-Civman-Client": "page" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (bytes !== undefined) headers["Content-Type"] = "application/octet-stream";
  let answer;
  try {
    answer = await fetch(path + search(query), {
      method, headers, signal, body: bytes ?? (body === undefined ? undefined : JSON.stringify(body)),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, {
      code: "no-server", message: "the server does not answer", hint: "start it again with `civman serve`",
    });
  }
  let value = {};
  try {
    value = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    value = { message: `the server answered ${answer.status} without JSON` };
  }
  if (!answer.ok) throw new ApiError(answer.status, value);
  return value;
}

export const get = (path, query = {}, signal = undefined) => api("GET", path, { query, signal });
export const post = (path, body = {}) => api("POST", path, { body });

function search(query) {
  const pairs = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== "" && each !== null && each !== undefined && each !== false) {
        pairs.append(name, each === true ? "1" : each);
      }
    }
  }
  const text = pairs.toString();
  return text ? `?${text}` : "";
}
