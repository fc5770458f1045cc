"""Pictures of pen drawings: rasters for metrics, grids, SVG, animations."""

from sparsejax.rendering.animation import to_gif
from sparsejax.rendering.grid import stroke_grid
from sparsejax.rendering.raster import RASTER_VERSION, rasterize
from sparsejax.rendering.vector import svg_grid, to_svg

__all__ = ["RASTER_VERSION", "rasterize", "stroke_grid", "svg_grid", "to_gif", "to_svg"]
