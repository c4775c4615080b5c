"""The platform's own runner, on the built images.

Grand Challenge starts every container through `sagemaker-shim`. Here it runs for real: `machine` has what it needs of
this machine, `image` a built image's file system, `invocation` one run and what it left, `inside` the run itself, as
the first process of namespaces of its own.
"""
