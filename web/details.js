// All that is known of one sample.

import { dateAndTime, number, percent, t } from "./texts.js";

export function make(tag, className = "", words = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (words) element.textContent = words;
  return element;
}

/** The preview of a sample, or words in its place. */
export function picture(sample) {
  if (!sample.preview) return make("span", "", t("noPreview"));
  const image = make("img");
  image.src = sample.preview;
  image.alt = "";
  image.draggable = false;
  return image;
}

/** Elements that show a sample; novelty: see Store.novelty. */
export function describe(sample, novelty) {
  const rows = [
    [t("novelty"), sample.nearest === null ? t("noveltyFirst") : t("noveltyValue", {
      share: novelty === null ? "–" : percent(novelty), distance: number(sample.nearest, 3) })],
    [t("seed"), sample.seed],
    [t("made"), dateAndTime(sample.time)]];
  if (sample.prompt) rows.push([t("prompt"), sample.prompt]);
  if (sample.guided_at !== undefined) {
    rows.push([t("guided"), t("guidedValue", {
      revision: number(sample.guided_at), strength: number(sample.strength, 2) })]);
  }
  const table = make("dl");
  for (const [key, value] of rows) table.append(make("dt", "", key), make("dd", "", value));
  const words = make("div");
  words.append(make("strong", "", t("number", { n: number(sample.number) })), table);
  if (sample.source) words.append(make("p", "", t("source", { source: sample.source })));
  const frame = make("div", "uncommon-picture");
  frame.append(picture(sample));
  return [frame, words];
}
