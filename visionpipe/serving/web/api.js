/** Calls the server. Every call returns an answer, or throws a Failure whose message is one sentence. */

const ATTEMPTS = 5; // while the server is busy
// Never the type of the file: the server would parse a picture as JSON if its type said so.
const PLAIN = { "Content-Type": "application/octet-stream" };

export class Failure extends Error {
  constructor(code, reason) {
    super(reason);
    this.code = code;
  }
}

let token = "";
let known = { tag: null, model: null }; // the last answer of /model, which is long and requested often

export function useToken(value) {
  token = value;
}

export function hasToken() {
  return token !== "";
}

/** Returns the response. Asks a busy server (503) again after the time that it names. */
export async function call(path, options = {}) {
  const headers = { ...options.headers };
  // UTF-8 bytes as characters: headers cannot contain other characters than Latin-1.
  if (token) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(token))}`;
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    } catch {
      throw new Failure("unreachable", "The server does not answer.");
    }
    if (response.ok || response.status === 304) return response;
    const { code, reason } = await response.json().catch(() => ({}));
    const wait = Number(response.headers.get("retry-after"));
    if (response.status !== 503 || !wait || attempt === ATTEMPTS) {
      throw new Failure(code ?? String(response.status), reason ?? `The server answered with status ${response.status}.`);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
  }
}

export async function getModel() {
  const response = await call("model", { headers: known.tag ? { "If-None-Match": known.tag } : {} });
  if (response.status !== 304) known = { tag: response.headers.get("etag"), model: await response.json() };
  return known.model;
}

export function predictPath(threshold, top) {
  return `predict?top_k=${top}&unsure_below=${threshold}`;
}

/** Returns the answer of /predict to an image file, and the version that gave it. */
export async function predict(bytes, threshold, top) {
  const response = await call(predictPath(threshold, top), { method: "POST", body: bytes, headers: PLAIN });
  const { predictions, model } = await response.json();
  return { ...predictions[0], version: model.version };
}

/** Returns an image file as the model sees it, as a PNG. */
export async function view(bytes) {
  return (await call("view", { method: "POST", body: bytes, headers: PLAIN })).blob();
}

/** Returns the shell command that sends the same request. */
export function curlCommand(fileName, threshold, top) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const address = new URL(predictPath(threshold, top), document.baseURI).href;
  const secret = hasToken() ? ' -H "Authorization: Bearer $VISIONPIPE_TOKEN"' : "";
  return `curl${secret} --data-binary ${quoted("@" + fileName)} ${quoted(address)}`;
}

/** Returns the probabilities of images of the model's size, a Float32Array for each.
 *
 *  images: Uint8Array (height · width · 3) each, of which a model of grey images takes the first channel. Uses the Open Inference Protocol v2 with binary tensors. Throws a
 *  Failure with code not_found if another version is live.
 */
export async function infer(model, images) {
  const { height, width } = model.size;
  const taken = model.channels === 1 ? images.map((image) => image.filter((_, index) => index % 3 === 0)) : images;
  const pixels = new Uint8Array(images.length * height * width * model.channels);
  taken.forEach((image, index) => pixels.set(image, index * image.length));
  const request = {
    inputs: [
      {
        name: "images",
        datatype: "UINT8",
        shape: [images.length, height, width, model.channels],
        parameters: { binary_data_size: pixels.length },
      },
    ],
    outputs: [{ name: "probabilities", parameters: { binary_data: true } }],
  };
  const head = new TextEncoder().encode(JSON.stringify(request));
  const path = `v2/models/${encodeURIComponent(model.name)}/versions/${encodeURIComponent(model.version)}/infer`;
  const response = await call(path, {
    method: "POST",
    body: new Blob([head, pixels]),
    headers: { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": String(head.length) },
  });
  const answer = await response.arrayBuffer();
  const values = new DataView(answer, Number(response.headers.get("inference-header-content-length")));
  const classes = model.classes.length;
  return images.map((_, row) =>
    Float32Array.from({ length: classes }, (_, column) => values.getFloat32(4 * (row * classes + column), true)),
  );
}
