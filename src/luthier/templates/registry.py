"""the templates by name."""

from __future__ import annotations

from luthier.registry import Registry
from luthier.templates.template import Template

TEMPLATES: Registry[Template] = Registry("template", "luthier.templates.families")
