"""Volumes to compare, predictions that are wrong in ways like a network's, and scores of a whole by scikit-image."""

import numpy as np
import zarr
from scipy import ndimage
from skimage.measure import label
from skimage.metrics import adapted_rand_error, contingency_table, variation_of_information
from skimage.segmentation import watershed

from pipeline.volumes.volume import open_volume


def stored(folder, name, array, chunks=(4, 64, 64)):
    """A Zarr array on disk, opened; a channel axis is one chunk."""
    path = str(folder / f"{name}.zarr")
    chunks = tuple(min(c, n) for c, n in zip(chunks, array.shape[-3:], strict=True))
    zarr.create_array(path, data=array, chunks=(*array.shape[:-3], *chunks), overwrite=True)
    return open_volume(path)


def blurred(membrane, *, sigma=1.0, noise=0.05, seed=0):
    """A membrane probability with gaps and false membranes, uint8."""
    random = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(membrane.astype(np.float32), (0, sigma, sigma))
    soft += ndimage.gaussian_filter(random.standard_normal(membrane.shape), (0, 1, 1)).astype(np.float32) * noise * 3
    return np.clip(np.rint(255 * soft / soft.max()), 0, 255).astype(np.uint8)


def cubes(shape=(12, 24, 24), side=8):
    """Instances that are cubes, ids from 1."""
    z, y, x = (np.arange(n) // side for n in shape)
    return (1 + z[:, None, None] * 100 + y[None, :, None] * 10 + x[None, None, :]).astype(np.uint16)


def segmented_slices(heights, limit):
    """Segments of each slice, in ids that no other slice has."""
    found = np.zeros(heights.shape, dtype=np.int64)
    for z, height in enumerate(heights):
        seeds = label(height < limit, connectivity=1)
        found[z] = watershed(height, seeds) if seeds.any() else 0
    return disjoint(found)


def segmented_volume(heights, limit):
    """Components of the whole volume, grown in each slice."""
    seeds = label(heights < limit, connectivity=1)
    return np.stack([watershed(h, s) if s.any() else s for h, s in zip(heights, seeds, strict=True)])


def disjoint(stack, keep_zero=False):
    """The stack with ids that no two slices share; 0 is an id like others, unless it is kept."""
    found = stack.astype(np.int64) + np.arange(len(stack))[:, None, None] * (int(stack.max()) + 1)
    return np.where(stack == 0, 0, found + 1) if keep_zero else found + 1


def by_scikit_image(true, predicted):
    """V_rand, split and merge of two label arrays; 0 in the truth is ignored."""
    error, _, _ = adapted_rand_error(true, predicted, ignore_labels=(0,))
    table = contingency_table(true, predicted, ignore_labels=(0,), sparse_type="array")
    table /= (
        table.sum()
    )  # whole counts first: adding up 1/n voxel by voxel, as it does by itself, loses the twelfth digit
    split, merge = variation_of_information(true, predicted, table=table)
    return 1 - error, split, merge
