"""GenEval: the verdict engine, and metrics that feed it with detections."""
