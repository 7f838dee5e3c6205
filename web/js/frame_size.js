// How large a picture will be, as far as the graph tells before it runs. Nothing is guessed: where a node's size is
// only known to itself, the answer is undefined.
import { api } from "../../../scripts/api.js";
import { source, sourceOfType, targets, valueOf } from "./graph.js";

// Stock nodes that hand a picture or a latent on at its size.
const SAME_SIZE = new Set([
  "VAEEncode", "VAEDecode", "VAEEncodeTiled", "VAEDecodeTiled", "VAEEncodeForInpaint", "SetLatentNoiseMask",
  "RepeatLatentBatch", "LatentFromBatch", "ImageFromBatch", "KSampler", "KSamplerAdvanced", "SamplerCustom",
  "SamplerCustomAdvanced", "ImageSharpen", "ImageBlur", "DifferentialDiffusion", "InpaintModelConditioning",
]);
// Stock nodes that bring a picture or a latent to the size on their widgets; others may keep its proportions.
const EXACT_SIZE = new Set(["ImageScale", "LatentUpscale"]);
const MEGAPIXEL = 1024 * 1024;

// Sizes of pictures in the input folder by address; null while one is on its way or cannot be read.
const pictures = new Map();
const stale = new Set();

function look(address) {
  const picture = new Image();
  picture.onload = () => pictures.set(address, [picture.naturalWidth, picture.naturalHeight]);
  picture.src = `${address}&rand=${Math.random()}`;  // else the browser shows what it had under this name
}

// A file of the same name may hold another picture by now, and one that was missing may have come.
export function lookAgain() {
  for (const address of pictures.keys()) stale.add(address);
}

function pictureSize(name) {
  if (typeof name !== "string" || !name) return undefined;
  const bare = name.replace(/ \[input\]$/, "");
  const cut = bare.lastIndexOf("/") + 1;
  const asked = new URLSearchParams({ filename: bare.slice(cut), subfolder: bare.slice(0, cut), type: "input" });
  const address = api.apiURL(`/view?${asked}`);
  if (!pictures.has(address)) pictures.set(address, null);
  else if (!stale.delete(address)) return pictures.get(address) ?? undefined;
  look(address);
  return pictures.get(address) ?? undefined;
}

const scaled = (size, factor) => size && factor > 0 ? size.map((side) => Math.round(side * factor)) : undefined;

// Size of what a node puts out, [width, height] in pixels.
function sizeFrom(node, depth = 0) {
  if (!node || depth > 50) return undefined;
  const kind = node.comfyClass ?? node.type;
  if (kind === "LoadImage") return pictureSize(valueOf(node, "image"));
  const before = () => sizeFrom(sourceOfType(node, "LATENT", "IMAGE"), depth + 1);
  const has = (name) => node.widgets?.some((widget) => widget.name === name);
  if (has("width") && has("height")) {
    if (!EXACT_SIZE.has(kind) && sourceOfType(node, "LATENT", "IMAGE")) return undefined;
    const [width, height] = [Number(valueOf(node, "width")), Number(valueOf(node, "height"))];
    if (width > 0 && height > 0) return [width, height];
    if (!(width >= 0 && height >= 0)) return undefined;  // a link that only the run can follow
    const size = before();  // 0 keeps the proportions
    return size && scaled(size, width / size[0] || height / size[1] || 1);
  }
  for (const name of ["scale_by", "upscale_by"])
    if (has(name)) return scaled(before(), Number(valueOf(node, name)));
  if (kind === "ImageScaleToTotalPixels") {
    const size = before();
    return size && scaled(size, Math.sqrt(Number(valueOf(node, "megapixels")) * MEGAPIXEL / (size[0] * size[1])));
  }
  return SAME_SIZE.has(kind) ? before() : undefined;
}

// Size of the last picture that CLEAR Upscale makes.
export function enlargedSize(node) {
  return scaled(sizeFrom(sourceOfType(node, "IMAGE")), Number(valueOf(node, "upscale_by")));
}

// Size of the largest frame that a model is going to denoise: of the latent at the samplers it reaches.
export function sampledSize(node, seen = new Set()) {
  let largest;
  for (const [index, output] of (node.outputs ?? []).entries()) {
    if (!["MODEL", "GUIDER"].includes(output.type)) continue;
    for (const target of targets(node, index)) {
      if (seen.has(target)) continue;
      seen.add(target);
      const latent = target.inputs?.findIndex((input) => input.type === "LATENT") ?? -1;
      for (const size of [
        target.comfyClass === "CLEARUpscale" ? enlargedSize(target) : undefined,
        latent >= 0 ? sizeFrom(source(target, latent)) : undefined,
        sampledSize(target, seen),
      ]) if (size && (!largest || size[0] * size[1] > largest[0] * largest[1])) largest = size;
    }
  }
  return largest;
}
