// Swagger UI on this service's document. `validatorUrl`: else a stranger's host would be asked.

const tries = document.documentElement.dataset.try === "true";

SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  supportedSubmitMethods: tries ? ["get", "post"] : [],
});
