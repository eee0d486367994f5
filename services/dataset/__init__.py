"""The dataset service: datasets, their versions, uploads and the tasks that make versions."""
