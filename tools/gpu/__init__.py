"""The parts of `tools/gpu_session.py`."""
