"""The sequence of stages, and the command line. No loops over data, no tensors, no clients."""
