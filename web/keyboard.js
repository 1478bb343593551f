// The keyboard in the panel: tabs, and that it stays inside. In the page, Ctrl+Z means another thing.

import { make } from "./details.js";
import { t } from "./texts.js";

const isThere = (one) => one.isConnected && !one.disabled && one.getClientRects().length > 0;

/** Changes what the panel shows. If that takes away what had the keyboard, heir(it) gets it. */
export function keepKeyboard(panel, change, heir) {
  const had = document.activeElement;
  const inside = panel.contains(had);
  change();
  if (inside && !isThere(had)) heir(had).focus({ preventScroll: true });
}

/** [list of tabs, tab of each of two views]; choose(view) is called when one is chosen. */
export function tabsOf(views, choose) {
  const list = make("div", "uncommon-tabs");
  list.setAttribute("role", "tablist");
  const tabs = {};
  for (const view of views) {
    const tab = make("button", "", t(view));
    tab.type = "button";
    tab.setAttribute("role", "tab");
    tab.addEventListener("click", () => choose(view));
    tabs[view] = tab;
    list.append(tab);
  }
  list.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = views.find((view) => tabs[view] !== event.target);
    choose(other);
    tabs[other].focus();
  });
  return [list, tabs];
}
