"""The arithmetic of STORM's hot paths. Import as ``storm_fast.kernels``."""

if __name__ != "storm_fast.kernels":
    raise ImportError("this folder is storm_fast.kernels; `import kernels` means Hugging Face's package")
