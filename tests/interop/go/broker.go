package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// A broker: its own SVID from the Workload API, mutual TLS to the broker endpoint (unix:PATH or HOST:PORT), one question,
// one line for each answer. REFERENCE is pid=N, pod=NAMESPACE/NAME, uid=UID, a type URL (with an empty message), bad=TYPE-URL
// (a message that is none), none (no reference message) or empty (one without a reference).
//
//	clients broker SOCKET ENDPOINT AGENT-TD METHOD REFERENCE [AUDIENCE [SPIFFE-ID]]
//
// METHOD is x509, x509-bundles, jwt, jwt-bundles, list (reflection), or x509-noheader.
func askBroker(ctx context.Context, addr workloadapi.ClientOption, args []string) error {
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(addr))
	if err != nil {
		return err
	}
	defer source.Close()
	td := spiffeid.RequireTrustDomainFromString(args[1])
	conf := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeMemberOf(td))
	conn, err := grpc.NewClient(args[0], grpc.WithTransportCredentials(credentials.NewTLS(conf)), grpc.WithAuthority("localhost"))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	method := args[2]
	if strings.HasSuffix(method, "-noheader") {
		method = strings.TrimSuffix(method, "-noheader")
	} else {
		ctx = metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true")
	}
	err = brokerMethod(ctx, conn, method, args[3:])
	if err != nil {
		if st, ok := status.FromError(err); ok {
			fmt.Printf("error: %s: %s\n", st.Code(), st.Message())
			return nil
		}
	}
	return err
}

func brokerReference(text string) (*broker.WorkloadReference, error) {
	var m proto.Message
	kind, value, _ := strings.Cut(text, "=")
	switch kind {
	case "none":
		return nil, nil
	case "empty":
		return &broker.WorkloadReference{}, nil
	case "pid":
		pid, err := strconv.Atoi(value)
		if err != nil {
			return nil, err
		}
		m = &broker.WorkloadPIDReference{Pid: int32(pid)}
	case "pod":
		namespace, name, _ := strings.Cut(value, "/")
		m = &broker.KubernetesObjectReference{
			Type: &broker.KubernetesObjectType{Plural: "pods", Group: "core"},
			Key:  &broker.KubernetesObjectKey{Namespace: namespace, Name: name}}
	case "uid":
		m = &broker.KubernetesObjectReference{Type: &broker.KubernetesObjectType{Plural: "pods", Group: "core"}, Uid: value}
	case "bad":
		return &broker.WorkloadReference{Reference: &anypb.Any{TypeUrl: value, Value: []byte{0xff, 0xff}}}, nil
	default:
		return &broker.WorkloadReference{Reference: &anypb.Any{TypeUrl: text}}, nil
	}
	any, err := anypb.New(m)
	return &broker.WorkloadReference{Reference: any}, err
}

func brokerMethod(ctx context.Context, conn *grpc.ClientConn, method string, args []string) error {
	c := broker.NewAPIClient(conn)
	if method == "list" {
		return brokerServices(ctx, conn)
	}
	ref, err := brokerReference(args[0])
	if err != nil {
		return err
	}
	switch method {
	case "x509":
		s, err := c.SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{Reference: ref})
		if err != nil {
			return err
		}
		r, err := s.Recv()
		if err != nil {
			return err
		}
		return printSVIDs(r)
	case "x509-bundles":
		s, err := c.SubscribeToX509Bundles(ctx, &broker.SubscribeToX509BundlesRequest{Reference: ref})
		if err != nil {
			return err
		}
		r, err := s.Recv()
		if err != nil {
			return err
		}
		for td, der := range r.Bundles {
			certs, err := x509.ParseCertificates(der)
			if err != nil {
				return err
			}
			fmt.Printf("bundle: %s %d\n", td, len(certs))
		}
	case "jwt-bundles":
		s, err := c.SubscribeToJWTBundles(ctx, &broker.SubscribeToJWTBundlesRequest{Reference: ref})
		if err != nil {
			return err
		}
		r, err := s.Recv()
		if err != nil {
			return err
		}
		for td, jwks := range r.Bundles {
			fmt.Printf("bundle: %s %v\n", td, strings.Contains(string(jwks), `"keys"`))
		}
	case "jwt":
		rq := &broker.FetchJWTSVIDRequest{Reference: ref}
		if len(args) > 1 && args[1] != "" {
			rq.Audience = []string{args[1]}
		}
		if len(args) > 2 {
			rq.SpiffeId = args[2]
		}
		r, err := c.FetchJWTSVID(ctx, rq)
		if err != nil {
			return err
		}
		for _, s := range r.Svids {
			fmt.Printf("jwt: %s %d parts hint=%q\n", s.SpiffeId, len(strings.Split(s.Svid, ".")), s.Hint)
		}
	default:
		return errors.New("no such method: " + method)
	}
	return nil
}

func printSVIDs(r *broker.SubscribeToX509SVIDResponse) error {
	for _, s := range r.Svids {
		certs, err := x509.ParseCertificates(s.X509Svid)
		if err != nil {
			return err
		}
		if _, err := x509.ParsePKCS8PrivateKey(s.X509SvidKey); err != nil {
			return err
		}
		roots, err := x509.ParseCertificates(s.Bundle)
		if err != nil {
			return err
		}
		fmt.Printf("svid: %s uri=%s roots=%d hint=%q\n", s.SpiffeId, certs[0].URIs[0], len(roots), s.Hint)
	}
	fmt.Printf("svids: %d, federated: %d\n", len(r.Svids), len(r.FederatedBundles))
	return nil
}

func brokerServices(ctx context.Context, conn *grpc.ClientConn) error {
	s, err := reflection.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	err = s.Send(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_ListServices{}})
	if err != nil && err != io.EOF {
		return err
	}
	r, err := s.Recv()
	if err != nil {
		return err
	}
	for _, v := range r.GetListServicesResponse().GetService() {
		fmt.Println("service:", v.Name)
	}
	return nil
}
