// What the panel does to the workflow on the canvas: freeze memories, open the one of an image.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

export const MEMORY_NODE = "UncommonNoveltyMemory";
export const GUIDANCE_NODE = "UncommonNoveltyGuidance";
const LATEST = -1;

/** All nodes of a graph and of its subgraphs. */
export function allNodes(graph = app.rootGraph ?? app.graph) {
  return (graph?.nodes ?? []).flatMap(
    (node) => [node, ...(node.subgraph ? allNodes(node.subgraph) : [])]);
}

export function widget(node, name) {
  return node.widgets?.find((one) => one.name === name);
}

/** The Novelty Memory nodes that use a memory of the default database. */
export function memoryNodes(name) {
  return allNodes().filter((node) => node.type === MEMORY_NODE &&
    widget(node, "name")?.value === name && !widget(node, "database")?.value);
}

export function isFrozen(name) {
  const nodes = memoryNodes(name);
  return nodes.length > 0 && nodes.every((node) => widget(node, "mode")?.value === "frozen");
}

function set(node, name, value) {
  const one = widget(node, name);
  if (!one) return;
  one.value = value;
  one.callback?.(value, app.canvas, node);
}

/** Freezes the nodes of a memory at a revision; without one they learn again. How many there are. */
export function freeze(name, revision = LATEST) {
  const nodes = memoryNodes(name);
  for (const node of nodes) {
    set(node, "mode", revision === LATEST ? "learn" : "frozen");
    set(node, "revision", revision);
    node.setDirtyCanvas?.(true, true);
  }
  app.extensionManager.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.();
  return nodes.length;
}

/** Opens the workflow that made a sample, its memory frozen as it was then, if it is here; how many
 * nodes that are, null where there is no workflow. ComfyUI has it until it ends, and the saved image
 * as long as it is there. */
export async function openWorkflow(store, sample) {
  const history = await (await api.fetchApi(`/history/${sample.prompt_id}`)).json();
  const workflow = history[sample.prompt_id]?.prompt?.[3]?.extra_pnginfo?.workflow ??
    await store.savedWorkflow(sample.number);
  if (!workflow) return null;
  await app.loadGraphData(workflow, true, true, null);
  const name = sample.guided_by ?? store.name;
  const memory = store.memories.find((one) => one.name === name);
  return memory?.revision >= sample.guided_at ? freeze(name, sample.guided_at) : 0;
}
