"""The only place in raycd that imports ray or mlflow: the core's stages on a cluster."""
