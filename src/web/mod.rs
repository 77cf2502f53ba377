//! The HTTP side of `lb`: the reactor's API and the admin port. The only place that names the web framework.
