"""The users' own documents, with the messages that Istio's translation makes of them."""

ISTIO_WORDS = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
DEFAULT_RETRY = {
    "retry_on": f"{ISTIO_WORDS},reset",  # meshlib knows which requests are safe to repeat
    "num_retries": 2,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
    "host_selection_retry_max_attempts": "5",
}
NO_TIMEOUT = {"timeout": "0s"}


def test_a_weighted_split_gets_the_default_retries(compiled, read):
    result = compiled(read("reviews-80-20.yaml"))
    expected = [
        {
            "match": {"prefix": "/", "case_sensitive": True},
            "route": {
                "weighted_clusters": {
                    "clusters": [
                        {"name": "outbound|80|v1|reviews.default.svc.cluster.local", "weight": 80},
                        {"name": "outbound|80|v2|reviews.default.svc.cluster.local", "weight": 20},
                    ]
                },
                "retry_policy": DEFAULT_RETRY,
                **NO_TIMEOUT,
            },
        }
    ]
    assert expected == result.routes()


def test_subsets_without_a_destination_rule_are_warnings_and_empty_clusters(compiled, read):
    result = compiled(read("reviews-80-20.yaml"))
    subset = "outbound|80|v1|reviews.default.svc.cluster.local"
    assert [(finding.code, finding.severity, finding.position.line) for finding in result.findings] == [
        ("IST0101", "warning", 13),
        ("IST0101", "warning", 17),
    ]
    assert {"cluster_name": subset} == result.get("EDS", subset)
    assert subset == result.get("CDS", subset)["eds_cluster_config"]["service_name"]


def test_the_checkout_canary(compiled, read):
    result = compiled(read("checkout-canary.yaml"))
    route = result.get("RDS", "checkout.example.com:80")["virtual_hosts"][0]["routes"][0]
    metadata = route.pop("metadata")
    expected = {
        "match": {"prefix": "/", "case_sensitive": True},
        "route": {
            "weighted_clusters": {
                "clusters": [
                    {"name": "outbound|80|v2|checkout.default.svc.cluster.local", "weight": 20},
                    {"name": "outbound|80|v1|checkout.default.svc.cluster.local", "weight": 80},
                ]
            },
            "retry_policy": DEFAULT_RETRY | {"num_retries": 3, "per_try_timeout": "2s"},
            **NO_TIMEOUT,
        },
        "typed_per_filter_config": {
            "envoy.filters.http.fault": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
                "delay": {"fixed_delay": "1s", "percentage": {"numerator": 100000, "denominator": "MILLION"}},
            }
        },
    }
    assert expected == route
    assert metadata == {
        "filter_metadata": {
            "meshlib": {
                "source": "test.yaml:10",
                "config": "/apis/networking.istio.io/v1/namespaces/default/virtual-service/checkout-canary",
            }
        }
    }


def test_a_host_that_is_no_service_has_a_listener(compiled, read):
    result = compiled(read("checkout-canary.yaml"))
    listener = result.get("LDS", "checkout.example.com")
    manager = listener["api_listener"]["api_listener"]
    assert manager["rds"]["route_config_name"] == "checkout.example.com:80"
    assert [one["name"] for one in manager["http_filters"]] == ["envoy.filters.http.fault", "envoy.filters.http.router"]
    assert "checkout.example.com:80" in result.names("LDS")


def test_the_user_service_canary_by_header_and_weight(compiled, read):
    result = compiled(read("user-service-canary.yaml"))
    first, second = result.routes("user-service")
    assert first["match"] == {
        "prefix": "/",
        "case_sensitive": True,
        "headers": [{"name": "canary", "string_match": {"exact": "true"}}],
    }
    assert first["route"]["cluster"] == "outbound|80|v2|user-service.default.svc.cluster.local"
    assert [one["weight"] for one in second["route"]["weighted_clusters"]["clusters"]] == [90, 10]
    assert result.cluster("v1", "user-service")["lb_policy"] == "LEAST_REQUEST"
    assert result.findings == ()


def test_least_conn_is_round_robin_for_stock_grpc_and_said_once(compiled, read):
    result = compiled(read("user-service-canary.yaml"), profile="grpc")
    assert result.cluster("v1", "user-service") == {
        "name": "outbound|80|v1|user-service.default.svc.cluster.local",
        "type": "EDS",
        "eds_cluster_config": {
            "eds_config": {"ads": {}, "resource_api_version": "V3"},
            "service_name": "outbound|80|v1|user-service.default.svc.cluster.local",
        },
    }
    assert result.codes == ["MESH0040"]


def test_the_authorization_policy_for_stock_grpc(compiled, read, instance):
    result = compiled(
        read("user-service-authz.yaml"),
        instance(service="user-service", service_account="user-service"),
        profile="grpc",
    )
    listener = result.get("LDS", "xds.istio.io/grpc/lds/inbound/10.0.0.1:9001")
    filters = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]

    def policy(caller: str) -> dict[str, object]:
        method = [{"header": {"name": ":method", "string_match": {"exact": name}}} for name in ("GET", "POST")]
        identity = {"authenticated": {"principal_name": {"exact": f"spiffe://cluster.local/ns/default/sa/{caller}"}}}
        return {
            "permissions": [{"and_rules": {"rules": [{"or_rules": {"rules": method}}]}}],
            "principals": [{"and_ids": {"ids": [{"or_ids": {"ids": [identity]}}]}}],
        }

    assert [one["name"] for one in filters] == ["envoy.filters.http.rbac", "envoy.filters.http.router"]
    assert {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {
            "policies": {
                "default-user-service-authz-0": policy("auth-service"),
                "default-user-service-authz-1": policy("gateway"),
            }
        },
    } == filters[0]["typed_config"]


def test_strict_in_a_namespace_and_a_mesh_config_that_changes_nothing(compiled, read, instance):
    result = compiled(read("strict-and-meshconfig.yaml"), instance(), instance(9002, namespace="other"))
    guarded = result.get("LDS", "xds.istio.io/grpc/lds/inbound/10.0.0.1:9001")["filter_chains"][0]
    other = result.get("LDS", "xds.istio.io/grpc/lds/inbound/10.0.0.1:9002")["filter_chains"][0]
    assert guarded["transport_socket"]["typed_config"] == {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificate_sds_secret_configs": [
                {"name": "default", "sds_config": {"ads": {}, "resource_api_version": "V3"}}
            ],
            "combined_validation_context": {
                "default_validation_context": {
                    "match_typed_subject_alt_names": [
                        {"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}
                    ]
                },
                "validation_context_sds_secret_config": {
                    "name": "ROOTCA",
                    "sds_config": {"ads": {}, "resource_api_version": "V3"},
                },
            },
        },
    }
    assert "transport_socket" not in other
    assert [(finding.code, finding.severity) for finding in result.findings] == [("MESH0020", "info")]
    assert "proxyStatsMatcher" in result.findings[0].message


def test_an_operator_document_names_the_variables_that_do_not_exist(compiled, read):
    result = compiled(read("istio-operator.yaml"))
    assert [(finding.code, finding.position.line, finding.position.column) for finding in result.findings] == [
        ("MESH0020", 9, 9),
        ("MESH0020", 10, 9),
    ]
    assert "PILOT_ENABLE_VALIDATION" in result.findings[0].message


def test_the_defective_document_has_its_four_defects(tmp_path, read):
    from xds_server.translate import validate

    path = tmp_path / "user-service-defective.yaml"
    path.write_text(read("user-service-defective.yaml"), encoding="utf-8")
    found = [
        (str(finding.severity), finding.code, finding.position.line, finding.position.column)
        for finding in validate([str(path)])
    ]
    assert found == [
        ("error", "MESH0013", 18, 5),  # empty fault, once in each rule
        ("warning", "IST0130", 21, 5),
        ("error", "MESH0013", 26, 5),
        ("error", "MESH0010", 43, 5),
        ("warning", "MESH0011", 43, 22),
    ]
    assert [str(path)] == sorted({finding.position.file for finding in validate([str(path)])})


def test_the_defective_document_says_what_was_meant(tmp_path, read):
    from xds_server.translate import validate

    path = tmp_path / "user-service-defective.yaml"
    path.write_text(read("user-service-defective.yaml"), encoding="utf-8")
    by_code = {finding.code: finding.message for finding in validate([str(path)])}
    assert "did you mean outlierDetection?" in by_code["MESH0010"]
    assert "user-service subset v2 gets 0 %" in by_code["IST0130"]
    assert "use consecutive5xxErrors" in by_code["MESH0011"]


def test_only_meshlib_is_told_to_repeat_after_a_reset(compiled, read):
    def words(text, profile):
        name = "outbound" if profile == "envoy" else "outbound|80||reviews.default.svc.cluster.local"
        hosts = compiled(text, profile=profile).get("RDS", name)["virtual_hosts"]
        host = next(host for host in hosts if "reviews" in host["domains"])
        return host["routes"][0]["route"]["retry_policy"]["retry_on"]

    unstated = read("reviews-80-20.yaml")
    assert ISTIO_WORDS == words(unstated, "envoy")
    assert f"{ISTIO_WORDS},reset" == words(unstated, "meshlib")
    stated = unstated + "      retries: {attempts: 2, retryOn: 5xx}\n"
    assert "5xx" == words(stated, "meshlib")
