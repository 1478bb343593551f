// What the page knows of the memories, and how it asks the server for more.

import { api } from "../../scripts/api.js";

const PAGE = 200; // samples of one request
const KEPT = 4000; // samples kept in the page
const CHOSEN = "uncommon.memory"; // where the browser keeps which memory is shown

async function ask(path, options) {
  const answer = await api.fetchApi(`/uncommon/${path}`, options);
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    throw new Error(body.error ?? `HTTP ${answer.status}`);
  }
  return answer;
}

function post(path, body) {
  return ask(path, {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
}

/** Tells "list" when the memories changed, "samples" when the shown one did, "map" when there is a
 * new map of it. Numbers are newest first throughout. */
export class Store extends EventTarget {
  memories = [];
  name = localStorage.getItem(CHOSEN);
  numbers = new Int32Array();
  map = null;
  #live = new Set();
  #samples = new Map();
  #waiting = new Map();
  #known = new Float32Array();
  #revision = -1;
  #mapRevision = -1;

  get memory() {
    return this.memories.find((memory) => memory.name === this.name);
  }

  isLive(number) {
    return this.#live.has(number);
  }

  async readList() {
    this.memories = await (await ask("memories")).json();
    if (!this.memory) this.name = this.memories[0]?.name ?? null;
    this.#tell("list");
  }

  async refresh() {
    await this.readList();
    await this.#readNumbers();
  }

  async choose(name) {
    if (name === this.name) return;
    this.name = name;
    localStorage.setItem(CHOSEN, name);
    this.#revision = this.#mapRevision = -1;
    this.map = null;
    this.#samples.clear();
    this.#waiting.clear();
    this.#tell("list");
    await this.#readNumbers();
  }

  /** Of the samples among `numbers` that are live, those that the page does not have are fetched. */
  async fetchSamples(numbers) {
    const missing = [...numbers].filter(
      (number) => !this.#samples.has(number) && !this.#waiting.has(number));
    for (let i = 0; i < missing.length; i += PAGE) {
      this.#fetchPage(missing.slice(i, i + PAGE));
    }
    await Promise.all([...numbers].map((number) => this.#waiting.get(number)));
  }

  sample(number) {
    return this.#samples.get(number);
  }

  /** The share of the memory's samples that were less new when they came; null if unknown. */
  novelty(sample) {
    if (sample.nearest === null || this.#known.length < 2) return null;
    let low = 0;
    let high = this.#known.length;
    const nearest = Math.fround(sample.nearest);
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#known[middle] < nearest) low = middle + 1;
      else high = middle;
    }
    return low / this.#known.length;
  }

  async readMap() {
    const { name } = this;
    if (!name || this.#mapRevision === this.#revision) return;
    const answer = await ask(`map?${new URLSearchParams({ memory: name })}`);
    const content = await answer.arrayBuffer();
    if (name !== this.name) return;
    const count = content.byteLength / 16;
    const nearest = new Float32Array(content, 12 * count, count);
    this.#mapRevision = Number(answer.headers.get("Uncommon-Revision"));
    this.#known = nearest.filter(Number.isFinite).sort();
    this.map = {
      numbers: new Int32Array(content, 0, count),
      points: new Float32Array(content, 4 * count, 2 * count),
      share: Number(answer.headers.get("Uncommon-Share")) };
    this.#tell("map");
  }

  async forget(numbers) {
    await post("forget", { memory: this.name, numbers });
    await this.refresh();
  }

  async undo() {
    const restored = await (await post("undo", { memory: this.name })).json();
    await this.refresh();
    return restored;
  }

  /** The workflow in the saved image of a sample; null where there is none. */
  async savedWorkflow(number) {
    const query = new URLSearchParams({ memory: this.name, numbers: number });
    return (await (await ask(`workflow?${query}`)).json()).workflow;
  }

  exportAddress() {
    return api.apiURL(`/uncommon/export?${new URLSearchParams({ memory: this.name })}`);
  }

  async import(name, file) {
    const answer = await ask(`import?${new URLSearchParams({ memory: name })}`, {
      method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    await this.readList();
    await (name === this.name ? this.refresh() : this.choose(name));
    return answer.json();
  }

  async #readNumbers() {
    const { name } = this;
    if (!name) {
      this.numbers = new Int32Array();
      this.#live = new Set();
      this.#tell("samples");
      return;
    }
    const answer = await ask(`numbers?${new URLSearchParams({ memory: name })}`);
    const numbers = new Int32Array(await answer.arrayBuffer());
    if (name !== this.name) return;
    const revision = Number(answer.headers.get("Uncommon-Revision"));
    if (revision < this.#revision) this.#samples.clear(); // another database
    this.#revision = revision;
    this.#live = new Set(numbers);
    this.numbers = numbers.reverse();
    this.#tell("samples");
    await this.readMap();
  }

  #fetchPage(numbers) {
    const { name } = this;
    const query = new URLSearchParams({ memory: name, numbers: numbers.join(",") });
    const waiting = ask(`samples?${query}`).then((answer) => answer.json()).then((found) => {
      if (name !== this.name) return;
      for (const sample of found) this.#samples.set(sample.number, sample);
      for (const old of this.#samples.keys()) {
        if (this.#samples.size <= KEPT) break;
        this.#samples.delete(old);
      }
    }).finally(() => {
      for (const number of numbers) {
        if (this.#waiting.get(number) === waiting) this.#waiting.delete(number);
      }
    });
    for (const number of numbers) this.#waiting.set(number, waiting);
  }

  #tell(event) {
    this.dispatchEvent(new Event(event));
  }
}
