// Two images beside each other: the verdict, where they differ, and what differs in their recipes.

import { get } from "./api.js";
import { button, el, fill } from "./dom.js";
import { namesOf, recipeWords } from "./format.js";
import { OWN, image } from "./images.js";
import { errorBox, waiting } from "./notices.js";
import { VERDICTS } from "./picture_details.js";
import { hrefOf } from "./route.js";

/** Show the comparison of two images in `root`. */
export async function comparison(root, one, other, close) {
  const back = button("Back to the images", close, { kind: "quiet" });
  fill(root, el("p", { class: "actions" }, back), waiting("Comparing …"));
  back.focus();
  try {
    const found = await get("/api/v1/compare", { a: one, b: other });
    const apart = found.distance;
    fill(root, el("p", { class: "actions" }, back), el("h1", {}, `Image ${one} and image ${other}`),
      el("p", {}, el("span", { class: `verdict ${VERDICTS[found.verdict] || "plain"}` }, found.verdict), distanceWords(apart)),
      el("div", { class: "compare-images" }, figure(one), figure(other),
        apart ? el("figure", {}, image(`/api/v1/compare/image?a=${one}&b=${other}`, OWN, { alt: "Where the two images differ", class: "shown" }),
          el("figcaption", { class: "hint" }, "Difference: black is equal, the largest difference is white")) : null),
      differences(found.recipe_differences, namesOf(Object.values(found.files)), one, other));
  } catch (error) {
    fill(root, el("p", { class: "actions" }, back), errorBox(error));
  }
}

function distanceWords(apart) {
  if (!apart) return ": their sizes differ";
  if (apart.psnr_db === null) return ": every pixel is the same";
  return `: PSNR ${apart.psnr_db.toFixed(1)} dB, largest difference ${apart.largest} of 255, ${(apart.share * 100).toFixed(1)} % of the pixels`;
}

function figure(id) {
  return el("figure", {}, image(`/api/v1/pictures/${id}/file`, OWN, { alt: `Image ${id}`, class: "shown" }),
    el("figcaption", {}, el("a", { href: hrefOf("pictures", { open: id }) }, `Image ${id}`)));
}

function differences(fields, names, one, other) {
  const isMore = Object.keys(fields).length > 1;
  const differing = Object.keys(fields).filter((name) => name !== "files" || !isMore); // other fields name the same files
  if (!differing.length) return el("p", { class: "hint" }, "Their recipes are the same.");
  return el("table", {}, el("thead", {}, el("tr", {}, ["What differs", `Image ${one}`, `Image ${other}`].map((each) => el("th", { scope: "col" }, each)))),
    el("tbody", {}, differing.map((name) => el("tr", {}, el("th", { scope: "row" }, name.replaceAll("_", " ")), fields[name].map((value) => el("td", {}, recipeWords(value, names)))))));
}
