"use strict";

// The API in Swagger UI. The token is the one that the visitor entered on the service's page.
const token = sessionStorage.getItem("token");
const headers = token ? { Authorization: `Bearer ${token}` } : {};

async function showApi() {
  const response = await fetch("openapi.json", { headers });
  if (response.status === 401) {
    const link = Object.assign(document.createElement("a"), { href: "./", textContent: "the service's page" });
    document.getElementById("problem").append("This service requires a token. Enter it on ", link, ", and follow the link “API” there.");
    document.getElementById("problem").hidden = false;
    return;
  }
  const spec = await response.json();
  spec.servers = [{ url: new URL(".", location.href).href.replace(/\/$/, "") }]; // also behind a proxy's path
  SwaggerUIBundle({
    spec,
    dom_id: "#api",
    validatorUrl: null, // no request to another site
    requestInterceptor: (request) => Object.assign(request, { headers: { ...request.headers, ...headers } }),
  });
}

showApi();
