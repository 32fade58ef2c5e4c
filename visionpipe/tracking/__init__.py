"""Uses MLflow: opens the tracking store, records one run per trained model, and registers models."""
