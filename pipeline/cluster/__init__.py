"""Workers, and how tiles reach them. The only room that imports dask."""
