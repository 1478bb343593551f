// The sidebar tab: which memories there are, what one of them holds, and what to do with it.

import { app } from "../../scripts/app.js";
import { copy } from "./clipboard.js";
import { describe, make } from "./details.js";
import { Gallery } from "./gallery.js";
import { keepKeyboard, tabsOf } from "./keyboard.js";
import { NoveltyMap } from "./map.js";
import { megabytes, number, percent, t } from "./texts.js";
import * as workflow from "./workflow.js";

const VIEW = "uncommon.view"; // where the browser keeps whether it shows the gallery or the map

export class Panel {
  selection = new Set();
  view = localStorage.getItem(VIEW) ?? "gallery";
  told = null;

  constructor(store) {
    this.store = store;
    this.ending = new AbortController();
    this.element = make("div", "uncommon-panel");
    const parts = {
      changed: () => this.#change(() => this.#selectionChanged()),
      shown: (name) => this.#tell(name) };
    this.gallery = new Gallery(store, this.selection, parts);
    this.map = new NoveltyMap(store, this.selection, parts);
    this.#build();
    const { signal } = this.ending;
    store.addEventListener("list", () => this.#change(() => this.#list()), { signal });
    store.addEventListener("samples", () => this.#change(() => this.#samples()), { signal });
    store.addEventListener("map", () => this.#mapRead(), { signal });
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("pointerenter", () => this.#actions());
    this.#list();
    this.#samples();
    this.#mapRead();
    this.#setView(this.view);
    this.#try(() => store.refresh());
  }

  destroy() {
    this.ending.abort();
    this.gallery.destroy();
    this.map.destroy();
    this.element.remove();
  }

  #build() {
    const title = make("h2", "", t("memories"));
    this.list = make("div", "uncommon-list");
    this.list.setAttribute("role", "radiogroup");
    this.list.setAttribute("aria-label", t("memories"));
    this.list.addEventListener("change", (event) => this.#choose(event.target.value));

    this.bar = make("div", "uncommon-bar");
    this.buttons = {};
    for (const [name, icon, act] of [
      ["forget", "pi-trash", () => this.#forget()],
      ["undo", "pi-undo", () => this.#undo()],
      ["freeze", "pi-lock", () => this.#freeze()],
      ["clear", "pi-eraser", () => this.#clear()],
      ["export", "pi-download", () => this.#export()],
      ["import", "pi-upload", () => this.file.click()]]) {
      this.bar.append(this.#button(name, icon, act));
    }
    this.file = make("input");
    Object.assign(this.file, { type: "file", accept: ".safetensors", hidden: true });
    this.file.addEventListener("change", () => this.#try(() => this.#import()));
    this.bar.append(this.file);
    this.status = make("div", "uncommon-status");
    this.status.setAttribute("role", "status");

    const [tabs, tabOf] = tabsOf(["gallery", "map"], (view) => this.#setView(view));
    this.tabs = tabOf;
    this.hint = make("p", "uncommon-hint uncommon-map-hint");
    this.nothing = make("p", "uncommon-hint");
    this.details = make("div", "uncommon-details");
    this.details.hidden = true;
    this.element.append(title, this.list, this.bar, this.status, tabs, this.hint,
      this.map.element, this.nothing, this.gallery.element, this.details);
  }

  #button(name, icon, act) {
    const button = make("button");
    button.type = "button";
    button.dataset.action = name;
    if (name !== "copySeed") button.title = t(`${name}Tip`);
    const image = make("i", `pi ${icon}`);
    image.setAttribute("aria-hidden", "true");
    button.append(image, make("span", "", t(name)));
    button.addEventListener("click", () => this.#try(act));
    this.buttons[name] = button;
    return button;
  }

  // What is shown

  #change(act) {
    keepKeyboard(this.element, act, (had) => (had.type === "radio"
      ? this.list.querySelector(":checked")
      : !had.isConnected && this.buttons[had.dataset.action]) || this.tabs[this.view]);
  }

  #list() {
    const { memories, name } = this.store;
    this.list.replaceChildren(...memories.map((memory) => {
      const label = make("label");
      const choice = make("input");
      Object.assign(choice, { type: "radio", name: "uncommon-memory", value: memory.name,
        checked: memory.name === name });
      const words = make("span");
      words.append(make("strong", "", memory.name), make("small", "", t("summary", {
        samples: number(memory.samples), megabytes: megabytes(memory.bytes),
        revision: number(memory.revision) })));
      label.append(choice, words);
      return label;
    }));
    this.list.querySelector(":checked")?.closest("label").scrollIntoView({ block: "nearest" });
    this.#actions();
  }

  #samples() {
    for (const one of this.selection) if (!this.store.isLive(one)) this.selection.delete(one);
    if (this.told !== null && !this.store.isLive(this.told)) this.#tell(null);
    this.#selectionChanged();
  }

  #mapRead() {
    if (!this.store.map) return;
    this.hint.textContent = t("mapHint", { share: percent(this.store.map.share) });
    this.map.update();
    this.gallery.draw();
    if (this.told !== null) this.#tell(this.told);
  }

  #selectionChanged() {
    const all = this.store.numbers;
    const numbers = this.view === "map" ? all.filter((one) => this.selection.has(one)) : all;
    this.gallery.element.hidden = !numbers.length;
    if (numbers.length !== this.gallery.numbers.length ||
        numbers.some((one, i) => one !== this.gallery.numbers[i])) {
      this.gallery.show(numbers);
    } else {
      this.gallery.draw();
    }
    this.nothing.textContent = !this.store.memories.length ? t("noMemories") : t("empty");
    this.nothing.hidden = all.length > 0;
    this.map.draw();
    this.#actions();
  }

  #actions() {
    const { forget, undo, freeze, clear } = this.buttons;
    const count = this.selection.size;
    const { memory, name } = this.store;
    forget.disabled = !count;
    forget.lastChild.textContent = count ? t("forgetCount", { n: number(count) }) : t("forget");
    undo.disabled = !memory?.forgotten;
    clear.disabled = this.buttons.export.disabled = !memory?.samples;
    const frozen = workflow.isFrozen(name);
    const used = workflow.memoryNodes(name).length > 0;
    freeze.disabled = !used;
    freeze.title = used ? t(frozen ? "learnTip" : "freezeTip") : t("freezeNone");
    freeze.firstChild.className = `pi ${frozen ? "pi-lock-open" : "pi-lock"}`;
    freeze.lastChild.textContent = t(frozen ? "learn" : "freeze");
  }

  #setView(view) {
    this.view = view;
    localStorage.setItem(VIEW, view);
    for (const [name, tab] of Object.entries(this.tabs)) {
      tab.setAttribute("aria-selected", name === view);
      tab.tabIndex = name === view ? 0 : -1;
    }
    this.element.dataset.view = view;
    this.map.update();
    this.#selectionChanged();
  }

  async #tell(name) {
    this.told = name;
    if (name !== null) await this.store.fetchSamples([name]).catch(() => {});
    if (this.told !== name) return;
    const sample = name === null ? undefined : this.store.sample(name);
    this.details.hidden = !sample;
    if (!sample) return;
    const bar = make("div", "uncommon-bar");
    bar.append(
      this.#button("loadWorkflow", "pi-folder-open", () => this.#loadWorkflow(sample)),
      this.#button("copySeed", "pi-copy", () => this.#copySeed(sample)));
    this.#change(() =>
      this.details.replaceChildren(...describe(sample, this.store.novelty(sample)), bar));
  }

  // What is done

  async #try(act) {
    try {
      await act();
    } catch (error) {
      this.#say(t("failed", { error: error.message }), true);
    }
    this.#actions();
  }

  #say(words, wrong = false) {
    this.status.textContent = words;
    this.status.classList.toggle("uncommon-wrong", wrong);
  }

  #choose(name) {
    this.selection.clear();
    this.#tell(null);
    this.#say("");
    this.#try(() => this.store.choose(name));
  }

  async #forget() {
    const numbers = [...this.selection];
    if (!numbers.length) return;
    await this.store.forget(numbers);
    this.#say(t("forgotten", { n: number(numbers.length) }));
  }

  async #undo() {
    const { numbers, lost } = await this.store.undo();
    this.#say(t((numbers.length ? "restored" : "nothingToUndo") + (lost ? "Lost" : ""),
      { n: number(numbers.length), lost: number(lost) }));
  }

  #freeze() {
    const { memory, name } = this.store;
    const frozen = workflow.isFrozen(name);
    workflow.freeze(name, frozen ? undefined : memory.revision);
    this.#say(t(frozen ? "learning" : "frozen", { revision: number(memory.revision) }));
  }

  async #clear() {
    const { memory, name } = this.store;
    const sure = await app.extensionManager.dialog.confirm({
      title: t("clearTitle", { name }), type: "delete",
      message: t("clearQuestion", { n: number(memory.samples) }) });
    if (!sure) return;
    await this.store.forget("all");
    this.#say(t("forgotten", { n: number(memory.samples) }));
  }

  #export() {
    const link = make("a");
    link.href = this.store.exportAddress();
    link.download = `${this.store.name}.safetensors`;
    link.click();
  }

  async #import() {
    const [file] = this.file.files;
    if (!file) return;
    const name = await app.extensionManager.dialog.prompt({
      title: t("importTitle"), message: t("importQuestion"),
      defaultValue: this.store.name ?? file.name.replace(/\.safetensors$/, "") });
    this.file.value = "";
    if (!name) return;
    const added = await this.store.import(name.trim(), file);
    this.#say(t("imported", { n: number(added.new), known: number(added.duplicates) }));
  }

  async #loadWorkflow(sample) {
    if (!sample.prompt_id) {
      this.#say(t("workflowNone"), true);
      return;
    }
    const frozen = await workflow.openWorkflow(this.store, sample);
    if (frozen === null) this.#say(t("workflowGone"), true);
    else this.#say(t(frozen ? "workflowLoaded" : "workflowNotFrozen", {
      revision: number(sample.guided_at), name: sample.guided_by ?? this.store.name }));
  }

  async #copySeed(sample) {
    await copy(sample.seed, this.details);
    this.#say(t("copied"));
  }

  #key(event) {
    // The page's own shortcuts would delete nodes and undo their changes.
    event.stopPropagation();
    if (event.target.matches("input, textarea")) return;
    if (event.key === "Delete" || event.key === "Backspace") this.#try(() => this.#forget());
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) this.#try(() => this.#undo());
    else if (event.key === "Escape" && this.selection.size) {
      this.selection.clear();
      this.#change(() => this.#selectionChanged());
    } else return;
    event.preventDefault();
  }
}
