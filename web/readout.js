// A line above Novelty Memory and Novelty Guidance: what the memory holds, how the last run went.

import { app } from "../../scripts/app.js";
import { number, percent, t } from "./texts.js";
import { allNodes, GUIDANCE_NODE, MEMORY_NODE, widget } from "./workflow.js";

const held = new Map(); // name of a memory -> what it holds
const runs = new WeakMap(); // node -> what its last run told
const drawn = new WeakMap(); // node -> its badge

function words(node) {
  if (node.type === MEMORY_NODE) {
    const memory = widget(node, "database")?.value ? null : held.get(widget(node, "name")?.value);
    return memory ? t("readoutMemory", {
      samples: number(memory.samples), revision: number(memory.revision) }) : "";
  }
  const run = runs.get(node);
  if (!run) return "";
  const [least, most] = [Math.min(...run.novelty), Math.max(...run.novelty)];
  const novelty = least === most ? percent(least) : `${percent(least)}–${percent(most)}`;
  const parts = run.novelty.length ? [t("readoutNovelty", { novelty })] : [];
  parts.push(run.push ? t("readoutPush", { push: number(run.push, 3) }) : t("readoutNoPush"));
  return parts.join(" · ");
}

/** Renews the lines above all nodes that have one. */
export function drawReadouts() {
  const { LGraphBadge } = window;
  const style = getComputedStyle(document.body);
  for (const node of allNodes()) {
    if (node.type !== MEMORY_NODE && node.type !== GUIDANCE_NODE) continue;
    const text = words(node);
    if (!LGraphBadge || !node.badges || drawn.get(node)?.text === text) continue;
    const oldValue = node.badges;
    const others = oldValue.filter((badge) => badge !== drawn.get(node));
    const badge = new LGraphBadge({ text, fgColor: style.getPropertyValue("--fg-color").trim(),
      bgColor: style.getPropertyValue("--comfy-menu-bg").trim() });
    drawn.set(node, badge);
    node.badges = text ? [...others, badge] : others;
    node.graph?.trigger?.("node:property:changed", { type: "node:property:changed",
      nodeId: node.id, property: "badges", oldValue, newValue: node.badges });
  }
  app.canvas?.setDirty(true, true);
}

export function tellHeld(memories) {
  held.clear();
  for (const memory of memories) held.set(memory.name, memory);
  drawReadouts();
}

/** What a run told of the node with an execution id, such as 7 or 12:3 inside a subgraph. */
export function tellRun(told) {
  const id = String(told.node).split(":").at(-1);
  for (const node of allNodes()) {
    if (node.type === GUIDANCE_NODE && String(node.id) === id) runs.set(node, told);
  }
  drawReadouts();
}
