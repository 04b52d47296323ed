"""`promote --mlflow URI`: the champion as a version of a registered model in MLflow.

A run of the experiment `batch-route` holds the bundle as it is (its artifacts under `bundle`) and the card's
figures. A version of the model that is named like the contract points there, and MLflow's alias `champion` to
the version. Run and version have the digest as a tag, so that the same bundle is registered once.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from batch.adapter.bundle import Bundle
from batch.adapter.files import read_json
from batch.errors import BatchRouteError, InputError, StorageError

EXPERIMENT = "batch-route"
FOLDER = "bundle"
DEFAULTS = {  # of its environment
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own seven take minutes to say that nobody answers
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
FORBIDDEN = {"/", ":"}  # in a model's name: not every server refuses them before it makes one
PASSING = {"INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "TEMPORARILY_UNAVAILABLE"}  # may go by themselves


class ModelRegistry:
    """MLflow's, at the URI of a tracking server, or of a folder (`file:`)."""

    def __init__(self, uri: str) -> None:
        """Ask it something, so that what cannot work is refused now. Raises `InputError`, `StorageError`."""
        os.environ.update({name: value for name, value in DEFAULTS.items() if name not in os.environ})
        self.uri = uri
        with self._translated():
            self._client = MlflowClient(uri, uri)
            self._client.search_registered_models(max_results=1)

    def check(self, bundle: Bundle) -> None:
        """Refuse a contract whose name no model can have, before the champion moves. Raises `InputError`,
        `StorageError`.
        """
        name = bundle.contract.name
        with self._translated():
            try:
                if set(name) & FORBIDDEN:
                    raise MlflowException("names hold neither '/' nor ':'", INVALID_PARAMETER_VALUE)
                self._has_model(name)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
                    raise
                raise InputError(
                    f"MLflow takes no model that is named like the contract, {name!r}: {str(error)[:300]}; "
                    "leave out --mlflow, or train with another name in the contract"
                ) from error

    def register(self, bundle: Bundle) -> str:
        """Name and number of the bundle's version, made unless it is there; `champion` points to it after
        this. Raises `InputError`, `StorageError`.
        """
        name = bundle.contract.name
        with self._translated():
            version = self._version(bundle) or self._made(bundle)
            self._client.set_registered_model_alias(name, "champion", version)
        return f"{name} version {version}"

    def _version(self, bundle: Bundle) -> str | None:
        # by the digest: a name may hold quotes, for which MLflow's filters have no escape
        found = self._client.search_model_versions(f"tags.digest = '{bundle.digest}'")
        return next((each.version for each in found if each.name == bundle.contract.name), None)

    def _has_model(self, name: str) -> bool:
        try:
            self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return False
        return True

    def _made(self, bundle: Bundle) -> str:
        client, name = self._client, bundle.contract.name
        tags = {"digest": bundle.digest, "contract": name, "base": bundle.base["ref"]}
        experiment = client.get_experiment_by_name(EXPERIMENT)
        place = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        run = client.create_run(place, tags=tags, run_name=f"{name}-{bundle.digest[:12]}").info
        for key, value in figures(bundle).items():
            client.log_metric(run.run_id, key, value)
        client.log_artifacts(run.run_id, str(bundle.path), FOLDER)
        client.set_terminated(run.run_id)
        if not self._has_model(name):
            client.create_registered_model(name)
        source = f"{run.artifact_uri}/{FOLDER}"
        made = client.create_model_version(name, source, run.run_id, tags=tags, await_creation_for=0)
        return str(made.version)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            passing = error.error_code in PASSING and self.uri.startswith("http")
            kind: type[BatchRouteError] = StorageError if passing else InputError
            remedy = "promote again when it answers" if passing else "give another --mlflow, or none"
            raise kind(f"MLflow at {self.uri}: {str(error)[:300]}; {remedy}") from error


def figures(bundle: Bundle) -> dict[str, float]:
    """What the card tells, by name: losses, parameters, and per field the calibrated scores' errors."""
    metrics = read_json(bundle.path / "metrics.json", "the bundle's metrics")
    calibration = read_json(bundle.path / "calibration.json", "the bundle's calibration")
    told: dict[str, Any] = {
        "validation_loss": metrics.get("best", {}).get("validation_loss"),
        "trainable_parameters": metrics.get("parameters", {}).get("trainable"),
        "triage_threshold": calibration.get("threshold"),
    }
    for field, found in calibration.get("evidence", {}).get("fields", {}).items():
        told |= {f"{measure}.{field}": found["calibrated"][measure] for measure in ("ece", "brier")}
    return {name: float(value) for name, value in told.items() if value is not None}
