"""Results on their way to others, and studies fetched from them: DICOM, DICOMweb, HL7, webhooks, folders."""
