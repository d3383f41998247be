// The views of the page. To add one: write `view_NAME.js` that exports `mount`, and a line here.
//
// `mount(root, params)` fills `root` and returns `{update(params), unmount(), focusSearch()}`. `params` is what follows `?`
// in the address; a view writes it with `amend` of route.js. `focusSearch` is optional and belongs to the key `/`.
// Shared parts: dom.js (elements), api.js (requests), events.js (jobs as they happen), grid.js (long lists), panel.js,
// filters.js, images.js (blurred by rating), notices.js (errors), checkpoint.js (the chosen checkpoint and verdicts).

export const VIEWS = [
  { name: "library", title: "Library", key: "l", load: () => import("./view_library.js") },
  { name: "civitai", title: "CivitAI", key: "c", load: () => import("./view_civitai.js") },
  { name: "draw", title: "Draw", key: "d", load: () => import("./view_draw.js") },
  { name: "pictures", title: "Pictures", key: "p", load: () => import("./view_pictures.js") },
  { name: "jobs", title: "Jobs", key: "j", load: () => import("./view_jobs.js") },
  { name: "server", title: "Server", key: "s", load: () => import("./view_server.js") },
];
