// The address: `#/library?q=ink&open=…`. A view reads its parameters from it and writes them back, so that Back, a reload
// and a bookmark work.

/** The view's name and its parameters, from the address. */
export function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { name: path || "library", params: new URLSearchParams(query) };
}

/** The address of a view. */
export function hrefOf(name, params = {}) {
  const pairs = params instanceof URLSearchParams ? params : new URLSearchParams(clean(params));
  const text = pairs.toString();
  return `#/${name}${text ? `?${text}` : ""}`;
}

/** Go to a view. `replace`: without an entry in the history, for what is typed letter by letter. */
export function go(name, params = {}, { replace = false } = {}) {
  const target = hrefOf(name, params);
  if (target === location.hash) return;
  if (replace) {
    history.replaceState(null, "", target);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = target;
  }
}

/** Change some parameters of the address and keep the others; null and "" remove one. */
export function amend(changes, options = {}) {
  const { name, params } = route();
  for (const [key, value] of Object.entries(changes)) {
    params.delete(key);
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "" && each !== false) params.append(key, each === true ? "1" : each);
    }
  }
  go(name, params, options);
}

function clean(params) {
  const pairs = [];
  for (const [key, value] of Object.entries(params)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "") pairs.push([key, each]);
    }
  }
  return pairs;
}
