"""Defines the MLflow model. MLflow copies this file into the model and runs it from there ("models from code")."""

import base64
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from visionpipe.artifact.classifier import Classifier
from visionpipe.data.headers import CLIENT_PIXELS
from visionpipe.errors import ImageError

MAX_ENCODED_LENGTH = 28_000_000  # base64 characters: an image file of 21 MB


class InvalidImage(MlflowException):
    """One row of the request is not a valid image. The client gets status 400 and this sentence.

    MLflow's scoring server prepends the whole request to `message` before it serialises the error, so the
    serialisation takes the sentence from the exception's `args`.
    """

    def __init__(self, row: int, reason: str):
        super().__init__(f"row {row}: {reason}", error_code=INVALID_PARAMETER_VALUE)

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self.args[0]})


class ImageClassifier(PythonModel):
    """Maps the column `image` (base64 of image files) to one `{label, probabilities: {class: float}}` per row."""

    def load_context(self, context: PythonModelContext) -> None:
        self._classifier = Classifier(Path(context.artifacts["classifier"]))

    def predict(
        self, context: PythonModelContext, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Classifies all rows; raises InvalidImage at the first one that is not a valid image."""
        if model_input.empty:
            return []
        images = np.stack([self._image(row, text) for row, text in enumerate(model_input["image"])])
        return [self._classifier.answer(row) for row in self._classifier.probabilities(images)]

    def _image(self, row: int, text: object) -> np.ndarray:
        """Decodes the base64 of an image file to the model's input, (height, width, channels)."""
        if not isinstance(text, str):  # MLflow accepts null and numbers in a column of strings
            raise InvalidImage(row, "the image is not a base64 string")
        if len(text) > MAX_ENCODED_LENGTH:
            raise InvalidImage(
                row, f"{len(text):,} characters of base64 exceed the limit of {MAX_ENCODED_LENGTH:,}"
            )
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            raise InvalidImage(row, "not plain base64: remove line breaks and any data: prefix") from None
        try:
            return self._classifier.preprocess(data, CLIENT_PIXELS)
        except ImageError as error:
            raise InvalidImage(row, error.reason) from None


mlflow.models.set_model(ImageClassifier())
