// What this pack adds to the page: the memory panel in the sidebar, and readouts on its nodes.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Panel } from "./panel.js";
import { drawReadouts, tellHeld, tellRun } from "./readout.js";
import { Store } from "./store.js";
import { loadTexts, t } from "./texts.js";

const PAUSE = 150; // milliseconds in which several changes count as one
const store = new Store();
let panel = null;
let timer = null;

function render(element) {
  if (panel && element.contains(panel.element)) return;
  panel?.destroy();
  panel = new Panel(store);
  element.classList.add("uncommon-tab");
  element.append(panel.element);
}

function close() {
  panel?.destroy();
  panel = null;
}

/** Reads the list of memories, and with the panel open what the shown one holds. */
async function refresh() {
  try {
    await (panel ? store.refresh() : store.readList());
  } catch (error) {
    console.warn("Uncommon: the memories could not be read.", error);
  }
}

function changed({ detail }) {
  if (detail.node !== undefined) tellRun(detail);
  clearTimeout(timer);
  timer = setTimeout(refresh, PAUSE);
}

app.registerExtension({
  name: "uncommon.memory",
  async setup() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("panel.css", import.meta.url);
    document.head.append(style);
    await loadTexts();
    store.addEventListener("list", () => tellHeld(store.memories));
    api.addEventListener("uncommon.memory", changed);
    app.extensionManager.registerSidebarTab({
      id: "uncommon-memory", icon: "pi pi-sparkles", title: "uncommon.title",
      tooltip: "uncommon.tooltip", type: "custom", render, destroy: close });
    app.ui.settings.addEventListener("Comfy.Locale.change", () => {
      const parent = panel?.element.parentElement;
      if (parent) setTimeout(() => { close(); render(parent); });
    });
  },
  afterConfigureGraph: refresh,
  nodeCreated: () => setTimeout(drawReadouts), // when it is in the graph
});
