// SPDX-License-Identifier: Apache-2.0

// Package pki makes the certificates and keys of control planes. All are ECDSA: RSA keys
// take a third of a second to make.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Authority signs the certificates of one cluster.
type Authority struct {
	PEM []byte // its own certificate

	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

// Identity is a certificate with its key, in PEM.
type Identity struct{ Certificate, Key []byte }

// NewAuthority makes an authority of that name that lasts for a year.
func NewAuthority(name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a := &Authority{key: key}
	if a.PEM, err = a.sign(template, template, &key.PublicKey); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(a.PEM)
	a.certificate, err = x509.ParseCertificate(block.Bytes)
	return a, err
}

func (a *Authority) sign(template, parent *x509.Certificate, key *ecdsa.PublicKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of %s: %w", template.Subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// Issue makes a certificate: for a client of that name and group, and, where there
// are addresses, for a server at these.
func (a *Authority) Issue(name, group string, addresses []netip.Addr, names ...string) (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames: names,
	}
	if group != "" {
		template.Subject.Organization = []string{group}
	}
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(address.AsSlice()))
	}
	if len(addresses) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	certificate, err := a.sign(template, a.certificate, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	encoded, err := encodeKey(key)
	return &Identity{Certificate: certificate, Key: encoded}, err
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Write writes NAME.crt and NAME.key into a folder.
func (i *Identity) Write(folder, name string) error {
	return errors.Join(
		os.WriteFile(filepath.Join(folder, name+".crt"), i.Certificate, 0o644),
		os.WriteFile(filepath.Join(folder, name+".key"), i.Key, 0o600),
	)
}

// WriteAccountKeys makes the key pair that signs and verifies the tokens of
// ServiceAccounts: sa.key, sa.pub.
func WriteAccountKeys(folder string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := encodeKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(folder, "sa.key"), private, 0o600),
		os.WriteFile(filepath.Join(folder, "sa.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644),
	)
}
