"""How near a prediction is to labels: of voxels, and of segments. It imports scikit-image."""
