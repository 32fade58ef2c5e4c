/** Computes heat maps by occlusion (Zeiler and Fergus 2014, section 4.2): parts of the picture are covered one after
 *  the other, and a part counted for the answer if covering it makes the answer less likely.
 */

const POSITIONS = 12; // of the cover in each direction, so a heat map takes 144 images
const COVER = 1 / 4; // of the picture's height and width
const LEAST = 1e-6; // probabilities are float32, which cannot express values closer to 1
const REQUEST = 4 * 2 ** 20; // maximum bytes of pixels in one request
const HEAD = 1024; // bytes of a request besides its pixels

/** Computes how much each pixel counted for the most probable class.
 *
 *  pixels: Uint8Array (height · width · 3), the model's input.
 *  model: the answer of /model.
 *  ask: a function from images to their probabilities.
 *  report: called with the completed fraction, in [0, 1].
 *
 *  Returns the class's index `best`, its `probability`, and `heat`, a Float64Array (height · width): the loss in
 *  log-odds, averaged over all covers of a pixel.
 */
export async function occlusion(pixels, model, ask, report) {
  const { height, width } = model.size;
  const covers = [];
  for (const [top, bottom] of spans(height)) {
    for (const [left, right] of spans(width)) covers.push({ top, bottom, left, right });
  }
  const fill = meanColour(pixels);
  const room = Math.floor(Math.min(REQUEST, model.max_body - HEAD) / pixels.length);
  const count = Math.max(1, Math.min(model.max_batch, model.max_images, room));
  const [whole] = await ask([pixels]);
  const best = whole.indexOf(whole.reduce((a, b) => Math.max(a, b))); // not Math.max(...whole): they may be too many
  const sum = new Float64Array(height * width);
  const times = new Float64Array(height * width);
  for (let start = 0; start < covers.length; start += count) {
    const now = covers.slice(start, start + count);
    const answers = await ask(now.map((cover) => covered(pixels, width, cover, fill)));
    now.forEach(({ top, bottom, left, right }, index) => {
      const loss = logOdds(whole[best]) - logOdds(answers[index][best]);
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) {
          sum[y * width + x] += loss;
          times[y * width + x] += 1;
        }
      }
    });
    report((start + now.length) / covers.length);
  }
  return { best, probability: whole[best], heat: sum.map((value, index) => value / times[index]) };
}

/** Returns the [start, end] of the covers in one direction, in pixels, evenly spaced from edge to edge. */
function spans(size) {
  const length = Math.max(1, Math.round(size * COVER));
  const count = Math.min(POSITIONS, size - length + 1);
  return Array.from({ length: count }, (_, index) => {
    const start = count === 1 ? 0 : Math.round((index * (size - length)) / (count - 1));
    return [start, start + length];
  });
}

function meanColour(pixels) {
  const sums = [0, 0, 0];
  pixels.forEach((value, index) => (sums[index % 3] += value));
  return sums.map((sum) => Math.round((3 * sum) / pixels.length));
}

function covered(pixels, width, { top, bottom, left, right }, fill) {
  const image = pixels.slice();
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) image.set(fill, 3 * (y * width + x));
  }
  return image;
}

function logOdds(probability) {
  const p = Math.min(1 - LEAST, Math.max(LEAST, probability));
  return Math.log(p / (1 - p));
}

/** Draws the heat over a picture: areas that counted stay bright, with a warm tint; the rest is darkened. */
export function draw(canvas, heat, { height, width }) {
  const most = heat.reduce((a, b) => Math.max(a, b)); // not Math.max(...heat): the pixels may be too many
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  heat.forEach((value, index) => {
    const share = most > 0 ? Math.max(0, value) / most : 0;
    image.data.set([255 * share, 150 * share, 0, 255 * (0.72 - 0.42 * share)], 4 * index);
  });
  context.putImageData(image, 0, 0);
}

/** Describes in words where the centre of the heat is, for users who cannot see it; null without heat. */
export function place(heat, { height, width }) {
  let total = 0;
  let x = 0;
  let y = 0;
  heat.forEach((value, index) => {
    const weight = Math.max(0, value);
    total += weight;
    x += weight * (((index % width) + 0.5) / width);
    y += weight * ((Math.floor(index / width) + 0.5) / height);
  });
  if (total === 0) return null;
  const side = (share, low, high) => (share < 0.42 ? low : share > 0.58 ? high : "");
  const words = [side(y / total, "top", "bottom"), side(x / total, "left", "right")].filter(Boolean);
  return words.length ? `towards the ${words.join(" ")}` : "around the middle";
}
