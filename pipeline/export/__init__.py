"""A checkpoint as a model package of bioimage.io. The third room that imports torch."""
