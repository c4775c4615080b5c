"""The platform's own runner, on the built images.

Grand Challenge starts every container through `sagemaker-shim`. The tests do the same: `machine` prepares this machine,
`image` opens the file system of a built image, `invocation` makes a run and reads its results, and `inside` is the
program that runs as the first process in new namespaces.
"""
