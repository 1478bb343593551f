// The panel's words, from locales/<language>/main.json of this pack, as the server merges them.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

let languages = {};

/** Reads all languages once; without them the keys themselves are shown. */
export async function loadTexts() {
  try {
    languages = await (await api.fetchApi("/i18n")).json();
  } catch (error) {
    console.warn("Uncommon: the texts of the memory panel could not be read.", error);
  }
}

export function language() {
  return app.extensionManager.setting.get("Comfy.Locale") || "en";
}

/** The text of a key, with {name} replaced by values.name. */
export function t(key, values = {}) {
  const own = languages[language()]?.uncommon ?? {};
  const text = own[key] ?? languages.en?.uncommon?.[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export function number(value, digits = 0) {
  return value.toLocaleString(language(), {
    minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function percent(share) {
  return share.toLocaleString(language(), { style: "percent", maximumFractionDigits: 0 });
}

export function megabytes(bytes) {
  const value = bytes / 2 ** 20;
  return number(value, value < 0.1 ? 3 : value < 10 ? 2 : 0);
}

export function dateAndTime(iso) {
  return new Date(iso).toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" });
}
