"""Endless rendered scenes; `render_scene` gives one, `SceneSettings` says what they show."""

from datamodules.scenes.rendering import SceneSettings, render_scene

__all__ = ["SceneSettings", "render_scene"]
