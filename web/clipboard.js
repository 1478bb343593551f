import { make } from "./details.js";

/** Copies a text. Over plain HTTP browsers have no navigator.clipboard; there a field helps, for a
 * moment in `place`. */
export async function copy(text, place) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const had = document.activeElement;
  const field = make("textarea");
  field.value = text;
  place.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  had.focus({ preventScroll: true });
  if (!copied) throw new Error("this browser lets no page copy over HTTP");
}
