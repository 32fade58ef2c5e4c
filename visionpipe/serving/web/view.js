/** Gets a picture as the model sees it from the server, which makes it with the code of its answers. */

import { Failure, view } from "./api.js";

/** Reads the bytes of a file; throws a Failure for a folder, for example. */
export async function readBytes(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Failure("unreadable", "This file cannot be read. Is it a folder?");
  }
}

/** Returns the model's input for a file, `pixels`, Uint8Array (height · width · 3), and the PNG they came from. */
export async function modelView(file) {
  const png = await view(await readBytes(file));
  const bitmap = await createImageBitmap(png, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  return { pixels: Uint8Array.from({ length: width * height * 3 }, (_, i) => rgba[i + Math.floor(i / 3)]), png };
}

/** Returns the central rectangle that the model sees of an upright picture, in fractions of the picture's size.
 *
 * With margins around the picture it is larger than the picture.
 */
export function shownPart(image, { size, crop_ratio, framing }) {
  const [down, across] = [size.height / image.height, size.width / image.width];
  const scale = { crop: Math.max(down, across), pad: Math.min(down, across) }[framing];
  const width = (across / (scale ?? across)) * crop_ratio;
  const height = (down / (scale ?? down)) * crop_ratio;
  return { left: (1 - width) / 2, top: (1 - height) / 2, width, height };
}
