// `<lora:name:0.8>` in a prompt, as A1111 and Forge write it, as rows.

import { findByStem, withPrefix } from "./adapter_names.js";
import { LARGEST_WEIGHT } from "./rows_json.js";

const TAG = /<(lora|lyco|hypernet):([^<>:]+)((?::[^<>:]*)*)>/gi;
const FILE = /\.(safetensors|pt|pth|ckpt|bin)$/i;

/**
 * A row for each tag in `text`. `<lora:name:TE:UNET>`: the first number is the text encoder's, the second the model's, and alone
 * it is both (A1111's extensions-builtin/Lora); `te=`, `unet=` and, for blocks, `lbw=` name what they set.
 * A name is that of an adapter here where one has it with or without folders; otherwise it stays, as a .safetensors file's.
 */
export function rowsOfTags(text) {
  return [...text.matchAll(TAG)].map(([, kind, name, rest]) => {
    const folder = kind.toLowerCase() === "hypernet" ? "hypernetworks" : "loras";
    const { clip, model, blocks } = settings(rest.split(":").slice(1));
    const row = { on: true, name: adapterName(folder, name.trim()), model, clip };
    return blocks ? { ...row, blocks } : row;
  });
}

function adapterName(folder, stem) {
  const file = FILE.test(stem) ? stem : `${stem}.safetensors`;
  return findByStem(folder, stem) ?? withPrefix(folder, file);
}

function settings(parts) {
  const named = Object.fromEntries(parts.filter((part) => part.includes("=")).map((part) => part.split("=", 2).map((text) => text.trim())));
  const [first, second] = parts.filter((part) => !part.includes("="));
  const clip = weight(named.te ?? first, 1);
  return { clip, model: weight(named.unet ?? second, clip), blocks: named.lbw };
}

function weight(text, otherwise) {
  const number = text?.trim() ? Number(text) : NaN;
  return Number.isFinite(number) ? Math.max(-LARGEST_WEIGHT, Math.min(LARGEST_WEIGHT, number)) : otherwise;
}
