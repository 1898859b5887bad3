"""The Open Inference Protocol V2, as KServe and Triton speak it, over the pipeline."""
