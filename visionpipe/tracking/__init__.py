"""MLflow: the tracking store, one run per trained model, and the model registry. Nothing else imports it
but serving's entry point.
"""
