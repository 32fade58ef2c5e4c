/** A picture as the model sees it: upright, on white, resized and cropped as `visionpipe/data/decode.py` does.
 *
 *  The browser's own resizing is another filter, and the heat map would explain another picture.
 */

const SUPPORT = 2; // of the bicubic filter with a = -1/2, Pillow's
const BITS = 22; // Pillow's fixed point: its sums are rounded to bytes after each direction

/** Uint8Array (height · width · 3), and the rectangle of the upright picture that it shows, in fractions. */
export async function modelView(file, { height, width }) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  try {
    const scale = Math.max(height / bitmap.height, width / bitmap.width);
    const left = Math.max(0, (bitmap.width - width / scale) / 2);
    const top = Math.max(0, (bitmap.height - height / scale) / 2);
    const image = upright(bitmap);
    const rows = resample(image, weights(bitmap.width, left, bitmap.width - left, width), "x");
    const pixels = resample(rows, weights(bitmap.height, top, bitmap.height - top, height), "y");
    const shown = {
      left: left / bitmap.width,
      top: top / bitmap.height,
      width: 1 - (2 * left) / bitmap.width,
      height: 1 - (2 * top) / bitmap.height,
    };
    return { pixels: pixels.data, shown };
  } finally {
    bitmap.close();
  }
}

function upright(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const data = new Uint8Array(bitmap.width * bitmap.height * 3);
  for (let from = 0, to = 0; to < data.length; from += 4, to += 3) {
    data[to] = rgba[from];
    data[to + 1] = rgba[from + 1];
    data[to + 2] = rgba[from + 2];
  }
  return { data, width: bitmap.width, height: bitmap.height };
}

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/** For each of `size` outputs the first input that counts, and the weights of it and its successors. */
function weights(inputs, from, to, size) {
  const scale = (to - from) / size;
  const stretch = Math.max(1, scale);
  return Array.from({ length: size }, (_, index) => {
    const centre = from + (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - SUPPORT * stretch + 0.5));
    const last = Math.min(inputs, Math.trunc(centre + SUPPORT * stretch + 0.5));
    const raw = Array.from({ length: last - first }, (_, k) => bicubic((k + first - centre + 0.5) / stretch));
    const sum = raw.reduce((a, b) => a + b, 0);
    const fixed = raw.map((value) => Math.trunc((value / sum) * 2 ** BITS + (value < 0 ? -0.5 : 0.5)));
    return { first, fixed };
  });
}

function resample({ data, width, height }, outputs, direction) {
  const along = direction === "x";
  const result = { width: along ? outputs.length : width, height: along ? height : outputs.length };
  result.data = new Uint8ClampedArray(result.width * result.height * 3);
  const [step, stride] = along ? [3, width * 3] : [width * 3, 3]; // to the next input, to the next line
  const [newStep, newStride] = along ? [3, result.width * 3] : [result.width * 3, 3];
  for (let line = 0; line < (along ? height : width); line++) {
    outputs.forEach(({ first, fixed }, index) => {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (BITS - 1);
        let position = line * stride + first * step + channel;
        for (const weight of fixed) {
          sum += weight * data[position];
          position += step;
        }
        result.data[line * newStride + index * newStep + channel] = Math.floor(sum / 2 ** BITS);
      }
    });
  }
  return result;
}
