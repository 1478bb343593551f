// A grid of samples that draws only what is in sight, however many there are.

import { make, picture } from "./details.js";
import { percent, t } from "./texts.js";

const TILE = 84; // pixels, at least
const CAPTION = 20;
const AHEAD = 2; // rows drawn above and below
const PAUSE = 60; // milliseconds of rest before what scrolled into sight is fetched

/** `selection` is a Set of numbers shared with others; `changed` tells that it changed, `shown(n)`
 * that the sample n shall be told of. */
export class Gallery {
  constructor(store, selection, { changed, shown }) {
    Object.assign(this, { store, selection, changed, shown });
    this.numbers = new Int32Array();
    this.focus = -1;
    this.tiles = new Map();
    this.element = make("div", "uncommon-gallery");
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "listbox");
    this.element.setAttribute("aria-multiselectable", "true");
    this.element.setAttribute("aria-label", t("galleryLabel"));
    this.sheet = make("div");
    this.element.append(this.sheet);
    this.element.addEventListener("scroll", () => this.draw(), { passive: true });
    this.element.addEventListener("click", (event) => this.#click(event));
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.observer = new ResizeObserver(() => this.#measure());
    this.observer.observe(this.element);
  }

  destroy() {
    this.observer.disconnect();
    clearTimeout(this.timer);
  }

  show(numbers) {
    const focused = this.numbers[this.focus];
    this.numbers = numbers;
    this.focus = focused === undefined ? -1 : numbers.indexOf(focused);
    this.#measure();
  }

  #measure() {
    if (!this.element.clientWidth) return; // hidden
    this.columns = Math.max(1, Math.floor(this.element.clientWidth / TILE));
    this.width = this.element.clientWidth / this.columns;
    this.height = this.width + CAPTION;
    this.sheet.style.height = `${Math.ceil(this.numbers.length / this.columns) * this.height}px`;
    for (const tile of this.tiles.values()) tile.remove();
    this.tiles.clear();
    this.draw();
  }

  /** Draws what is in sight; keeps tiles that stay in sight. */
  draw() {
    if (!this.height) return;
    const top = Math.floor(this.element.scrollTop / this.height) - AHEAD;
    const rows = Math.ceil(this.element.clientHeight / this.height) + 2 * AHEAD;
    const first = Math.max(0, top * this.columns);
    const last = Math.min(this.numbers.length, (top + rows) * this.columns);
    for (const [index, tile] of this.tiles) {
      if (index < first || index >= last) {
        tile.remove();
        this.tiles.delete(index);
      }
    }
    const missing = [];
    for (let index = first; index < last; index++) {
      if (!this.tiles.has(index)) this.#add(index);
      if (!this.store.sample(this.numbers[index])) missing.push(this.numbers[index]);
      this.#fill(index);
    }
    clearTimeout(this.timer);
    if (missing.length) this.timer = setTimeout(() => this.#fetch(missing), PAUSE);
  }

  async #fetch(missing) {
    try {
      await this.store.fetchSamples(missing);
    } catch (error) {
      console.warn("Uncommon: samples could not be read.", error);
    }
    for (const index of this.tiles.keys()) this.#fill(index);
  }

  #add(index) {
    const tile = make("div", "uncommon-tile");
    tile.id = `uncommon-tile-${index}`;
    tile.setAttribute("role", "option");
    tile.setAttribute("aria-posinset", index + 1);
    tile.setAttribute("aria-setsize", this.numbers.length);
    tile.dataset.index = index;
    tile.dataset.number = this.numbers[index];
    tile.style.cssText = `width:${this.width}px;height:${this.height}px;` +
      `left:${(index % this.columns) * this.width}px;` +
      `top:${Math.floor(index / this.columns) * this.height}px`;
    tile.append(make("div", "uncommon-picture"), make("div", "uncommon-caption"));
    this.sheet.append(tile);
    this.tiles.set(index, tile);
  }

  #fill(index) {
    const tile = this.tiles.get(index);
    const number = this.numbers[index];
    tile.setAttribute("aria-selected", this.selection.has(number));
    tile.classList.toggle("uncommon-focus", index === this.focus);
    const sample = this.store.sample(number);
    if (!sample) return;
    const novelty = this.store.novelty(sample);
    const shown = novelty === null ? "–" : percent(novelty);
    const [frame, caption] = tile.children;
    caption.textContent = shown;
    tile.setAttribute("aria-label", t("tile", { n: number, novelty: shown, seed: sample.seed }));
    if (!frame.firstChild) frame.append(picture(sample));
  }

  select(index, { extend = false, toggle = true } = {}) {
    const number = this.numbers[index];
    if (number === undefined) return;
    if (extend && this.focus >= 0) {
      const [from, to] = [Math.min(this.focus, index), Math.max(this.focus, index)];
      for (let i = from; i <= to; i++) this.selection.add(this.numbers[i]);
    } else if (toggle && this.selection.has(number)) {
      this.selection.delete(number);
    } else {
      this.selection.add(number);
    }
    this.move(index);
    this.changed();
  }

  /** Moves the keyboard's mark, and scrolls it into sight. */
  move(index) {
    this.focus = index;
    const row = Math.floor(index / this.columns) * this.height;
    const { scrollTop, clientHeight } = this.element;
    if (row < scrollTop) this.element.scrollTop = row;
    else if (row + this.height > scrollTop + clientHeight) {
      this.element.scrollTop = row + this.height - clientHeight;
    }
    this.draw();
    this.element.setAttribute("aria-activedescendant", `uncommon-tile-${index}`);
    this.shown(this.numbers[index]);
  }

  #click(event) {
    const tile = event.target.closest(".uncommon-tile");
    if (tile) this.select(Number(tile.dataset.index), { extend: event.shiftKey });
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.height)) * this.columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns,
      PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity };
    const last = this.numbers.length - 1;
    if (last < 0) return;
    if (event.key in steps) {
      const to = this.focus < 0 ? 0 :
        Math.min(last, Math.max(0, this.focus + steps[event.key]));
      if (event.shiftKey) this.select(to, { extend: true });
      else this.move(to);
    } else if (event.key === " " || event.key === "Enter") {
      this.select(Math.max(0, this.focus));
    } else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      for (const number of this.numbers) this.selection.add(number);
      this.changed();
    } else {
      return;
    }
    event.preventDefault();
  }
}
