-- Beside the database `prefect`, which the container makes itself.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
