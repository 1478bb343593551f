// Which part of the map is seen: all of it, or a part that is enlarged.

import { make } from "./details.js";
import { t } from "./texts.js";

const MARGIN = 12; // pixels around the dots
const BAR = 26; // pixels below them, for the buttons
const LARGEST = 64; // times
const PER_CLICK = 1.6; // how much a button enlarges

export class MapView {
  zoom = 1;
  #held = new Map(); // where each pointer is that holds the map
  #panX = 0;
  #panY = 0;

  /** Pixels of all points, x and y by turns, in a map of `width` x `height`. */
  place(points, width, height) {
    Object.assign(this, { width, height: height - BAR });
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < points.length; i += 2) {
      left = Math.min(left, points[i]);
      right = Math.max(right, points[i]);
      top = Math.min(top, points[i + 1]);
      bottom = Math.max(bottom, points[i + 1]);
    }
    const scale = this.zoom * Math.min((width - 2 * MARGIN) / (right - left || 1),
      (this.height - 2 * MARGIN) / (bottom - top || 1));
    this.#keepInside();
    const count = points.length / 2;
    const [x, y] = [new Float32Array(count), new Float32Array(count)];
    for (let i = 0; i < count; i++) {
      x[i] = width / 2 + this.#panX + (points[2 * i] - (left + right) / 2) * scale;
      y[i] = this.height / 2 + this.#panY + (points[2 * i + 1] - (top + bottom) / 2) * scale;
    }
    return [x, y];
  }

  /** Enlarges by a factor; what lies at `x`, `y` stays there. */
  enlarge(factor, x = this.width / 2, y = this.height / 2) {
    const zoom = Math.max(1, Math.min(LARGEST, this.zoom * factor));
    const [fromX, fromY] = [x - this.width / 2, y - this.height / 2];
    this.#panX = fromX - (fromX - this.#panX) * zoom / this.zoom;
    this.#panY = fromY - (fromY - this.#panY) * zoom / this.zoom;
    this.zoom = zoom;
  }

  get isHeld() {
    return this.#held.size > 0;
  }

  hold(pointer, place) {
    this.#held.set(pointer, place);
  }

  /** Whether it was held. */
  letGo(pointer) {
    return this.#held.delete(pointer);
  }

  /** The map follows what holds it: one pointer moves it, of two each enlarges it. */
  drag(pointer, x, y) {
    if (!this.#held.has(pointer)) return;
    const [lastX, lastY] = this.#held.get(pointer);
    this.#held.set(pointer, [x, y]);
    const other = [...this.#held.keys()].find((id) => id !== pointer);
    if (other === undefined) {
      this.#panX += x - lastX;
      this.#panY += y - lastY;
    } else {
      const [atX, atY] = this.#held.get(other);
      const apart = (toX, toY) => Math.max(1, Math.hypot(toX - atX, toY - atY));
      this.enlarge(apart(x, y) / apart(lastX, lastY), atX, atY);
    }
  }

  reset() {
    this.zoom = 1;
  }

  /** Nothing can be moved beyond where the whole map ends; so at zoom 1 nothing can be moved. */
  #keepInside() {
    const most = [this.width, this.height].map((size) => size / 2 * (this.zoom - 1));
    this.#panX = Math.max(-most[0], Math.min(most[0], this.#panX));
    this.#panY = Math.max(-most[1], Math.min(most[1], this.#panY));
  }
}

/** look(act): has the view looked at anew after act(view). */
export function zoomButtons(look) {
  const bar = make("div", "uncommon-zoom");
  for (const [name, icon, act] of [
    ["zoomIn", "pi-plus", (view) => view.enlarge(PER_CLICK)],
    ["zoomOut", "pi-minus", (view) => view.enlarge(1 / PER_CLICK)],
    ["zoomAll", "pi-expand", (view) => view.reset()]]) {
    const button = make("button");
    button.type = "button";
    button.title = t(name);
    button.setAttribute("aria-label", t(name));
    button.append(make("i", `pi ${icon}`));
    button.addEventListener("click", () => look(act));
    bar.append(button);
  }
  return bar;
}
