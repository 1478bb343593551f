// The novelty map: every sample as a dot; drawing around dots selects them.

import { make, picture } from "./details.js";
import { MapView, zoomButtons } from "./map_view.js";
import { number, percent, t } from "./texts.js";

const NEWEST = 8; // samples that are marked
const REACH = 10; // pixels between pointer and dot
const CELL = 16; // pixels of a cell of the grid that finds dots near the pointer
const STEP = 3; // pixels between points of the lasso
const PAUSE = 40; // milliseconds of rest before a preview is fetched
const PER_PIXEL = 1.002; // how much the wheel enlarges
const LINE = 16; // pixels, where a wheel counts lines

/** See Gallery for `selection`, `changed` and `shown`. */
export class NoveltyMap {
  constructor(store, selection, { changed, shown }) {
    Object.assign(this, { store, selection, changed, shown });
    this.element = make("div", "uncommon-map");
    this.element.uncommonMap = this;
    this.canvas = make("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", t("mapLabel"));
    this.hover = make("div", "uncommon-hover");
    this.hover.hidden = true;
    this.view = new MapView();
    const buttons = zoomButtons((act) => this.#look(() => act(this.view)));
    this.element.append(this.canvas, buttons, this.hover);
    this.dots = make("canvas");
    this.lasso = [];
    this.x = this.y = new Float32Array();
    const on = (name, act) => this.canvas.addEventListener(name, act);
    on("pointerdown", (event) => this.#down(event));
    on("pointermove", (event) => this.#move(event));
    on("pointerup", (event) => this.#up(event));
    on("pointercancel", (event) => this.#cancel(event));
    on("pointerleave", () => this.#point(-1));
    on("wheel", (event) => this.#wheel(event));
    on("dblclick", () => this.#look(() => this.view.reset()));
    this.observer = new ResizeObserver(() => this.update());
    this.observer.observe(this.element);
    this.theme = new MutationObserver(() => this.update());
    for (const node of [document.documentElement, document.body]) {
      this.theme.observe(node, { attributeFilter: ["class", "style"] });
    }
  }

  destroy() {
    this.observer.disconnect();
    this.theme.disconnect();
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
  }

  /** Looks at another part of the map, drawn once a frame at most. */
  #look(act) {
    act();
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.update());
  }

  /** Places all dots anew: after a new map, another size, another theme, at another zoom. */
  update() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height) return;
    const scale = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.dots]) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    Object.assign(this, { width, height, scale });
    const style = getComputedStyle(this.element);
    this.colours = Object.fromEntries(["dot", "selected", "newest", "line"].map(
      (name) => [name, style.getPropertyValue(`--uncommon-${name}`).trim()]));
    this.#place();
    this.#drawDots();
    this.draw();
  }

  #place() {
    if (this.shownName !== this.store.name) this.view.reset();
    this.shownName = this.store.name;
    const points = this.store.map?.points ?? new Float32Array();
    [this.x, this.y] = this.view.place(points, this.width, this.height);
    this.cells = null;
    this.pointed = -1;
    this.hover.hidden = true;
  }

  /** The dots by the cell of a grid that they lie in; made when it is first asked for. */
  #grid() {
    if (this.cells) return this.cells;
    this.cells = new Map();
    for (let i = 0; i < this.x.length; i++) {
      const cell = this.#cell(this.x[i], this.y[i]);
      if (!this.cells.has(cell)) this.cells.set(cell, []);
      this.cells.get(cell).push(i);
    }
    return this.cells;
  }

  #cell(x, y) {
    return Math.floor(y / CELL) * 4096 + Math.floor(x / CELL);
  }

  /** All dots in one colour go to a canvas of their own, so that moving the pointer costs little. */
  #drawDots() {
    const context = this.dots.getContext("2d");
    context.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    const size = this.x.length > 20000 ? 1.5 : this.x.length > 2000 ? 2.5 : 5;
    this.size = size;
    context.fillStyle = this.colours.dot;
    context.globalAlpha = Math.max(0.3, Math.min(1, 5000 / this.x.length));
    for (let i = 0; i < this.x.length; i++) {
      const [x, y] = [this.x[i], this.y[i]];
      if (x > -size && y > -size && x < this.width + size && y < this.height + size) {
        context.fillRect(x - size / 2, y - size / 2, size, size);
      }
    }
  }

  draw() {
    if (!this.width) return;
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.dots, 0, 0);
    context.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    const numbers = this.store.map?.numbers ?? [];
    const big = this.size + 2;
    context.fillStyle = this.colours.selected;
    if (this.selection.size) {
      for (let i = 0; i < this.x.length; i++) {
        if (this.selection.has(numbers[i])) {
          context.fillRect(this.x[i] - big / 2, this.y[i] - big / 2, big, big);
        }
      }
    }
    const ring = (i, colour, radius) => {
      context.strokeStyle = colour;
      context.lineWidth = 1.5;
      context.beginPath();
      context.arc(this.x[i], this.y[i], radius, 0, 2 * Math.PI);
      context.stroke();
    };
    for (let i = Math.max(0, this.x.length - NEWEST); i < this.x.length; i++) {
      ring(i, this.colours.newest, 5);
    }
    if (this.pointed >= 0) ring(this.pointed, this.colours.line, 8);
    if (this.lasso.length > 1) {
      context.strokeStyle = this.colours.line;
      context.setLineDash([4, 3]);
      context.beginPath();
      this.lasso.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.closePath();
      context.stroke();
      context.setLineDash([]);
    }
  }

  /** The dot nearest to a place, -1 where none is near. */
  nearest(x, y) {
    let [found, best] = [-1, REACH ** 2];
    for (const dx of [-CELL, 0, CELL]) {
      for (const dy of [-CELL, 0, CELL]) {
        for (const i of this.#grid().get(this.#cell(x + dx, y + dy)) ?? []) {
          const distance = (this.x[i] - x) ** 2 + (this.y[i] - y) ** 2;
          if (distance < best) [found, best] = [i, distance];
        }
      }
    }
    return found;
  }

  #down(event) {
    const place = [event.offsetX, event.offsetY];
    if (event.button === 1 || this.lasso.length || this.view.isHeld) {
      if (this.lasso.length) this.view.hold(this.finger, this.lasso.at(-1));
      this.view.hold(event.pointerId, place);
      this.lasso = [];
      this.draw();
    } else if (event.button) {
      return;
    } else {
      this.lasso = [place];
      this.finger = event.pointerId;
    }
    this.canvas.setPointerCapture(event.pointerId);
    if (event.button === 1) event.preventDefault(); // the page would scroll
  }

  #move(event) {
    const { offsetX: x, offsetY: y } = event;
    if (this.view.isHeld) {
      this.#look(() => this.view.drag(event.pointerId, x, y));
      return;
    }
    if (!this.lasso.length) {
      this.#point(this.nearest(x, y));
      return;
    }
    const [lastX, lastY] = this.lasso.at(-1);
    if (Math.hypot(x - lastX, y - lastY) < STEP) return;
    this.lasso.push([x, y]);
    this.draw();
  }

  #cancel(event) {
    this.view.letGo(event.pointerId);
    this.lasso = [];
    this.draw();
  }

  #wheel(event) {
    event.preventDefault();
    event.stopPropagation();
    const pixels = event.deltaY * (event.deltaMode ? LINE : 1);
    this.#look(() => this.view.enlarge(PER_PIXEL ** -pixels, event.offsetX, event.offsetY));
  }

  #up(event) {
    if (this.view.letGo(event.pointerId)) return;
    const { lasso } = this;
    this.lasso = [];
    const more = event.shiftKey || event.ctrlKey || event.metaKey;
    const numbers = this.store.map?.numbers ?? [];
    if (lasso.length > 3) {
      if (!more) this.selection.clear();
      for (const i of inside(lasso, this.x, this.y)) this.selection.add(numbers[i]);
    } else if (lasso.length) {
      const number = numbers[this.nearest(...lasso[0])];
      if (number !== undefined) {
        if (!this.selection.delete(number)) this.selection.add(number);
        this.shown(number);
      } else if (!more) {
        this.selection.clear();
      }
    }
    this.draw();
    this.changed();
  }

  #point(i) {
    if (i === this.pointed) return;
    this.pointed = i;
    this.draw();
    this.hover.hidden = true;
    clearTimeout(this.timer);
    if (i >= 0) this.timer = setTimeout(() => this.#preview(i), PAUSE);
  }

  async #preview(i) {
    const name = this.store.map.numbers[i];
    await this.store.fetchSamples([name]).catch(() => {});
    const sample = this.store.sample(name);
    if (!sample || this.pointed !== i) return;
    const novelty = this.store.novelty(sample);
    const words = make("div", "", t("number", { n: number(name) }) +
      (novelty === null ? "" : ` · ${percent(novelty)}`));
    this.hover.replaceChildren(picture(sample), words);
    this.hover.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = this.hover;
    const left = this.x[i] + 14 + width > this.width ? this.x[i] - 14 - width : this.x[i] + 14;
    this.hover.style.left = `${Math.max(0, left)}px`;
    this.hover.style.top =
      `${Math.max(0, Math.min(this.y[i] - height / 2, this.height - height))}px`;
  }
}

/** Indices of the dots inside a polygon, by the even-odd rule. */
export function inside(polygon, xs, ys) {
  const found = [];
  const [left, right, top, bottom] = [
    Math.min(...polygon.map(([x]) => x)), Math.max(...polygon.map(([x]) => x)),
    Math.min(...polygon.map(([, y]) => y)), Math.max(...polygon.map(([, y]) => y))];
  for (let i = 0; i < xs.length; i++) {
    const [x, y] = [xs[i], ys[i]];
    if (x < left || x > right || y < top || y > bottom) continue;
    let within = false;
    for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
      const [ax, ay] = polygon[a];
      const [bx, by] = polygon[b];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) within = !within;
    }
    if (within) found.push(i);
  }
  return found;
}
