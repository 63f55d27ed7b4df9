"""user-service: a Django application in one file, served by gunicorn.

MESHLIB_SERVICE=user-service MESHLIB_LABELS=version=v1 MESHLIB_SERVICE_ACCOUNT=user-service \
    gunicorn -k meshlib.integrations.gunicorn.MeshWorker --bind 127.0.0.1:0 user_service:application
"""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import re_path

settings.configure(
    SECRET_KEY=os.urandom(32).hex(),
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["meshlib.integrations.django.MeshMiddleware"],
    MESHLIB={"service": "user-service"},
)


def user(request: HttpRequest) -> JsonResponse:
    version = dict(part.split("=") for part in os.environ["MESHLIB_LABELS"].split(","))["version"]
    return JsonResponse({"service": "user-service", "version": version, "pid": os.getpid(), "method": request.method})


urlpatterns = [re_path(r"^.*$", user)]
application = get_wsgi_application()
