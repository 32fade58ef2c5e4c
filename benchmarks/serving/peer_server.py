"""Serves an exported artifact with LitServe or BentoML, to be measured beside `visionpipe serve`.

    python benchmarks/serving/peer_server.py litserve FOLDER PORT
    python benchmarks/serving/peer_server.py bentoml FOLDER PORT

The Python of another environment runs this file, so that it imports nothing of this repository. Each server decodes,
resizes and normalises as ours does (Pillow, the model's own normalisation) and runs the same ONNX file in batches of
up to 32, in workers that decode in threads and share the cores. compare.py sets the environment variables WORKERS,
MAX_BATCH, and LITSERVE_TIMEOUT, the seconds that LitServe waits for a batch to fill. BentoML's max_latency_ms is so
long that it does not refuse requests of the slow model.
"""

import base64
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

FOLDER = Path(os.environ.setdefault("ARTIFACT", sys.argv[2] if len(sys.argv) > 2 else "."))
WORKERS = int(os.environ.get("WORKERS", "1"))
MAX_BATCH = int(os.environ.get("MAX_BATCH", "32"))


class Model:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, (os.cpu_count() or 1) // WORKERS)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            str(FOLDER / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.labels = json.loads((FOLDER / "labels.json").read_text())
        self.height, self.width = json.loads((FOLDER / "preprocessing.json").read_text())["size"]
        self.threads = ThreadPoolExecutor(os.cpu_count())

    def decode(self, data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if image.size != (self.width, self.height):
            scale = max(self.height / image.height, self.width / image.width)
            left, top = (image.width - self.width / scale) / 2, (image.height - self.height / scale) / 2
            box = (left, top, image.width - left, image.height - top)
            image = image.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box)
        return np.asarray(image, np.float32)

    def answer(self, files: list[bytes]) -> list[dict]:
        images = np.stack(list(self.threads.map(self.decode, files)))
        logits = self.session.run(["logits"], {"images": images})[0]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        table = exponentials / exponentials.sum(axis=1, keepdims=True)
        return [
            {
                "label": self.labels[row.argmax()],
                "probabilities": dict(zip(self.labels, row.tolist(), strict=True)),
            }
            for row in table
        ]


if sys.argv[1] == "litserve":  # the worker that it spawns imports this file with the same arguments
    import litserve

    class LitClassify(litserve.LitAPI):
        def setup(self, device: str) -> None:
            self.model = Model()

        def decode_request(self, request: dict) -> bytes:
            return base64.b64decode(request["image"])

        def batch(self, inputs: list[bytes]) -> list[bytes]:
            return inputs

        def predict(self, inputs: list[bytes]) -> list[dict]:
            return self.model.answer(inputs)

        def unbatch(self, outputs: list[dict]) -> list[dict]:
            return outputs

        def encode_response(self, output: dict) -> dict:
            return output


if os.environ.get("PEER") == "bentoml":
    import bentoml

    @bentoml.service(
        workers=WORKERS, traffic={"timeout": 60, "concurrency": 256}, logging={"access": {"enabled": False}}
    )
    class Classify:
        def __init__(self) -> None:
            self.model = Model()

        @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000, route="/predict")
        def predict(self, images: list[str]) -> list[dict]:
            return self.model.answer([base64.b64decode(image) for image in images])


if __name__ == "__main__":
    if sys.argv[1] == "litserve":
        api = LitClassify(
            max_batch_size=MAX_BATCH, batch_timeout=float(os.environ.get("LITSERVE_TIMEOUT", "0.005"))
        )
        server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=60)
        server.run(host="127.0.0.1", port=int(sys.argv[3]), log_level="error", generate_client_file=False)
    else:
        os.environ["PEER"] = "bentoml"
        bento = str(Path(sys.executable).parent / "bentoml")
        command = [bento, "serve", "peer_server:Classify", "--host", "127.0.0.1", "--port", sys.argv[3]]
        os.chdir(Path(__file__).parent)
        os.execv(bento, command)
